"""Prompts and pictures into tensors, latents back into pixels.

Shape letters: B batch, T text tokens, W text width, P pooled width, H and W height and width.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flux_engine.batching import fixed_batches
from flux_engine.models.text import clip_pooled, t5_states, tokenise
from flux_engine.models.vae import AutoEncoder
from flux_engine.sampling.tiling import Tiling, tiled
from flux_engine.shortage import attempt

CACHE_BYTES = 512 * 2**20

TextKey = tuple[str, int]  # a prompt, and its length in T5 tokens
Loop = Callable[[str, float], AbstractContextManager[None]]


def no_loop(model: str, passes: float) -> AbstractContextManager[None]:  # noqa: ARG001
    """Weights that stay where they are need not know how often they are used."""
    return nullcontext()


@dataclass(frozen=True)
class Text:
    """One prompt, encoded, on the host: T5's states (T, W) and CLIP's pooled vector (P,).

    `dropped` counts the T5 tokens that did not fit. `halved` is how many prompts it was encoded
    among if memory was short of the chosen number, else 0.
    """

    states_TW: Tensor
    pooled_P: Tensor
    dropped: int
    halved: int = 0

    @property
    def nbytes(self) -> int:
        return self.states_TW.nbytes + self.pooled_P.nbytes


@dataclass(frozen=True)
class TextModels:
    """Both encoders, each with its tokenizer."""

    clip: nn.Module
    clip_tokenizer: Any
    t5: nn.Module
    t5_tokenizer: Any

    @property
    def clip_length(self) -> int:
        return int(self.clip.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]


class TextEncoder:
    """Distinct prompts into embeddings, in batches of one shape; the latest ones are kept.

    `batch` says how many prompts of so many T5 tokens are encoded at once.
    """

    def __init__(
        self,
        models: TextModels,
        device: torch.device,
        batch: Callable[[int], int],
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.models = models
        self.device, self.batch = device, batch
        self.loop: Loop = no_loop
        self.encoded = 0  # prompts that went through the encoders
        self._cache: OrderedDict[tuple[str, int, str], Text] = OrderedDict()
        self._cache_bytes = cache_bytes

    def knows(self, wanted: Iterable[TextKey], changed: str = "") -> bool:
        """Whether all of these are kept, so that the encoders are not needed."""
        return all((*key, changed) in self._cache for key in wanted)

    def __call__(self, wanted: Sequence[TextKey], changed: str = "") -> dict[TextKey, Text]:
        """Texts by (prompt, T5 sequence length); each distinct one is encoded once.

        `changed` names what is merged into the encoders now: their texts are others.
        """
        distinct = list(dict.fromkeys(wanted))
        kept = {key: (*key, changed) for key in distinct}
        out = {key: self._cache[kept[key]] for key in distinct if kept[key] in self._cache}
        new = [key for key in distinct if key not in out]
        for length in dict.fromkeys(length for _, length in new):
            prompts = [prompt for prompt, n in new if n == length]
            out.update(((prompt, length), text) for prompt, text in self._texts(prompts, length))
        self._keep({kept[key]: text for key, text in out.items()})
        return out

    def _texts(self, prompts: Sequence[str], length: int) -> Iterator[tuple[str, Text]]:
        """Prompts with their texts; from where memory runs out, in batches of half the size."""
        chosen = size = self.batch(length)
        while prompts:
            done = 0
            with self.loop("t5", -(-len(prompts) // size)):
                for real, filled in fixed_batches(prompts, size):
                    texts = attempt("text", size, partial(self._encode, filled, length))
                    if texts is None:
                        break
                    halved = size if size < chosen else 0
                    yield from (
                        (p, replace(t, halved=halved)) for p, t in zip(real, texts, strict=False)
                    )
                    self.encoded += len(real)
                    done += len(real)
            prompts = prompts[done:]
            size = size // 2 if prompts else size

    @torch.inference_mode()
    def _encode(self, prompts: list[str], length: int) -> list[Text]:
        m = self.models
        t5 = tokenise(m.t5_tokenizer, prompts, length)
        clip = tokenise(m.clip_tokenizer, prompts, m.clip_length)
        states = t5_states(m.t5, t5.ids_BT.to(self.device)).cpu()
        pooled = clip_pooled(m.clip, clip.ids_BT.to(self.device)).cpu()
        return [
            Text(states[i].clone(), pooled[i].clone(), t5.dropped[i]) for i in range(len(prompts))
        ]

    def _keep(self, texts: dict[tuple[str, int, str], Text]) -> None:
        for key, text in texts.items():
            self._cache[key] = text
            self._cache.move_to_end(key)
        held = sum(text.nbytes for text in self._cache.values())
        while held > self._cache_bytes:
            held -= self._cache.popitem(last=False)[1].nbytes


def layout_for(device: torch.device) -> torch.memory_format:
    """Channels last on a GPU, where convolutions are faster so. On a CPU they are as well, but the
    last bits then depend on the number of threads."""
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


class PictureCoder:
    """Pictures of one size into latents and back, in batches of one shape."""

    def __init__(self, vae: AutoEncoder, device: torch.device, dtype: torch.dtype) -> None:
        self.vae, self.device, self.dtype = vae, device, dtype

    @torch.inference_mode()
    def encode(
        self,
        pictures: Sequence[Tensor],
        batch: int,
        tiling: Tiling | None,
        *,
        moments: bool = False,
    ) -> list[Tensor]:
        """Latents (Z, H/8, W/8), float32 on the host, of pictures (3, H, W) in −1…1; or mean and
        log-variance, (2 Z, H/8, W/8)."""
        out: list[Tensor] = []
        function = self.vae.scaled_moments if moments else self.vae.encode
        for real, filled in fixed_batches(pictures, batch):
            x = self._laid_out(filled)
            z = self._through(function, x, tiling, decoding=False)
            out += z[: len(real)].float().cpu().unbind(0)
        return out

    @torch.inference_mode()
    def decode(self, latents: Sequence[Tensor], batch: int, tiling: Tiling | None) -> list[Tensor]:
        """Pictures (3, H, W) around −1…1, float32 on the host, of latents (Z, H/8, W/8)."""
        out: list[Tensor] = []
        for real, filled in fixed_batches(latents, batch):
            z = self._laid_out(filled)
            x = self._through(self.vae.decode, z, tiling, decoding=True)
            out += x[: len(real)].float().cpu().unbind(0)
        return out

    def _laid_out(self, filled: Sequence[Tensor]) -> Tensor:
        """As the autoencoder's weights are."""
        stacked = torch.stack(tuple(filled))
        return stacked.to(self.device, self.dtype, memory_format=layout_for(self.device))

    def _through(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        tiling: Tiling | None,
        *,
        decoding: bool,
    ) -> Tensor:
        if tiling is None:
            return function(x)
        factor = self.vae.spec.factor
        cell, scale = (1, Fraction(factor)) if decoding else (factor, Fraction(1, factor))
        return tiled(function, x, tiling, cell=cell, scale=scale)
