"""The rows of one call: what each asks for, wears and is told, and what has become of it so far."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from flux_engine.adapters.lora import Outfit
from flux_engine.batching import Bucket, mixed_batches
from flux_engine.encode import Text, TextKey
from flux_engine.latents import start_noise
from flux_engine.request import GenerationRequest, Trace
from flux_engine.sampling.denoise import Conditions
from flux_engine.sampling.tiling import Tiling


@dataclass(frozen=True)
class Coded:
    """Latents or pixels that the autoencoder made; `halved` is how many at once, if memory was
    short of the chosen number, else 0."""

    values: Tensor
    halved: int = 0


@dataclass(frozen=True)
class Denoised:
    """One row's latents (Z, H/8, W/8) on the host, the micro-batch it was in, and its path."""

    latents: Tensor
    micro_batch: int
    trace: Trace | None = None


Latents = dict[int, Denoised]  # by number
# lets layers add what each row of a micro-batch wears; rows come so many times over
Beside = Callable[[Sequence[Outfit], int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Prepared:
    """The rows of a call by number, what they wear, their texts by what is merged into the
    encoders, and the latents that pictures start from."""

    requests: dict[int, GenerationRequest]
    outfits: dict[int, Outfit]
    texts: dict[str, dict[TextKey, Text]]
    pictures: dict[int, Coded]

    def texts_of(self, i: int) -> list[Text]:
        """Of the prompt, and with guidance of the negative one."""
        texts = self.texts[self.outfits[i].text_key]
        return [texts[key] for key in prompts_of(self.requests[i])]

    def starts(self, members: Sequence[int], shape: tuple[int, int, int], sigma: Tensor) -> Tensor:
        """(B, Z, H/8, W/8): each row's noise, or its picture with as much noise as `sigma` says."""
        out = []
        for i in members:
            noise = start_noise(self.requests[i].seed, shape, self.requests[i].rand_device)
            if (given := self.pictures.get(i)) is not None:
                noise = (1 - sigma) * given.values + sigma * noise
            out.append(noise)
        return torch.stack(out)

    def conditions(
        self, members: Sequence[int], beside: Beside, device: torch.device, dtype: torch.dtype
    ) -> Conditions:
        """Prompts first, then, in a guided bucket, the negative prompts."""
        requests = [self.requests[i] for i in members]
        sides = zip(*(self.texts_of(i) for i in members), strict=True)
        told = [text for side in sides for text in side]
        guided = requests[0].guided
        guidance = torch.tensor([r.embedded_guidance for r in requests] * (1 + guided))
        cfg = torch.tensor([r.cfg_scale for r in requests]).to(device) if guided else None
        outfits = [self.outfits[i] for i in members]
        return Conditions(
            text_GTW=torch.stack([t.states_TW for t in told]).to(device, dtype),
            pooled_GP=torch.stack([t.pooled_P for t in told]).to(device, dtype),
            guidance_G=guidance.to(device),
            cfg_B=cfg,
            beside=lambda: beside(outfits, 1 + guided),
        )

    def halved(self, i: int, decoded: Coded | None) -> str:
        """The stages that took fewer than the chosen number at once, and how many."""
        return shortages(
            text=least(text.halved for text in self.texts_of(i)),
            encode=self.pictures[i].halved if i in self.pictures else 0,
            decode=decoded.halved if decoded else 0,
        )

    def micro_batches(
        self, bucket: Bucket, members: Sequence[int], size: int, most: int
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Pairs as of `fixed_batches`; `most` outfits beside the weights stand in one of them."""
        beside = bool(bucket.worn.factors)

        def kind(i: int) -> str:
            return self.outfits[i].key if beside else ""

        return mixed_batches(members, size, kind, most)


def shortages(**batches: int) -> str:
    """The stages that took fewer than the chosen number at once, and how many: `text 4, encode 2`;
    0 is a stage that was not short."""
    return ", ".join(f"{stage} {n}" for stage, n in batches.items() if n)


def least(batches: Iterable[int]) -> int:
    """The smallest batch of those that memory was short for; 0 if there is none."""
    return min((n for n in batches if n), default=0)


def stacked(made: Sequence[Denoised]) -> Tensor:
    """Latents of a micro-batch, (B, Z, H/8, W/8)."""
    return torch.stack([one.latents for one in made])


def by_picture(
    members: Iterable[int], requests: Mapping[int, GenerationRequest]
) -> dict[tuple[int, int, Tiling | None], list[int]]:
    """Rows by what they must have in common to share a batch of the autoencoder."""
    out: dict[tuple[int, int, Tiling | None], list[int]] = {}
    for i in members:
        r = requests[i]
        out.setdefault((r.height, r.width, tiling_of(r)), []).append(i)
    return out


def tiling_of(request: GenerationRequest) -> Tiling | None:
    return Tiling(request.tile_size, request.tile_stride) if request.tiled else None


def prompts_of(request: GenerationRequest) -> tuple[TextKey, ...]:
    """The (prompt, T5 length) pairs that a request needs encoded."""
    length = request.t5_sequence_length
    if request.guided:
        return (request.prompt, length), (request.negative_prompt, length)
    return ((request.prompt, length),)
