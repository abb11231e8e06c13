"""What each stage of the engine's work takes at once, and what of the weights it has on the card.

Batch shapes belong to an output: `keep` is asked for each that is not given, by name and with the
number that would be chosen here, and answers the one to take.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from flux_engine.batching import Batching, Bucket
from flux_engine.errors import SettingError
from flux_engine.latents import PATCH
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from flux_engine.sampling.tiling import Tiling
from flux_engine.vram.estimates import Machine, Sizes, Weights, Work
from flux_engine.vram.planner import Plan, Stage, decode_stage, plan, text_stage

Keep = Callable[[str, int], int]

EVERYWHERE = Stage(resident={})


def as_chosen(name: str, value: int) -> int:  # noqa: ARG001
    return value


class Planning:
    """Answers for one engine; without a card, batches follow a rule of the picture's size."""

    def __init__(
        self,
        batching: Batching,
        *,
        cell: int,
        machine: Machine | None = None,
        weights: Weights | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.batching, self.cell = batching, cell
        self.machine, self.weights, self.sizes = machine, weights, sizes
        self.keep: Keep = as_chosen
        self._plan = cache(self._planned)

    def text(self, length: int) -> Stage:
        if self.machine is None or self.weights is None or self.sizes is None:
            return EVERYWHERE
        return text_stage(self.machine, self.weights, self.sizes, length, self.batching.text)

    def micro_batch(self, bucket: Bucket) -> int:
        chosen = self.batching.micro or self.keep(
            f"micro_batch {_named(bucket)}", self._chosen_micro_batch(bucket)
        )
        if self.machine is not None:
            self.plan(bucket, chosen)  # raises where another card has chosen what is too much here
        return chosen

    def _chosen_micro_batch(self, bucket: Bucket) -> int:
        if self.machine is None:
            return self.batching.micro_batch(self._tokens(bucket.height, bucket.width))
        return self.plan(bucket).micro_batch

    def decode_batch(self, height: int, width: int, tiling: Tiling | None) -> int:
        """Pictures that the autoencoder takes at once, either way."""
        if self.batching.decode:
            return self.batching.decode
        chosen = self.batching.decode_batch(height, width)
        if self.machine is not None and self.weights and self.sizes:
            work = self._picture(height, width, tiling)
            chosen = decode_stage(self.machine, self.weights, work, self.sizes, None)[1]
        tiles = f" tiles {tiling.size}" if tiling else ""
        return self.keep(f"decode_batch {height}x{width}{tiles}", chosen)

    def decode(self, height: int, width: int, tiling: Tiling | None) -> Stage:
        if self.machine is None or self.weights is None or self.sizes is None:
            return EVERYWHERE
        work = self._picture(height, width, tiling)
        batch = self.decode_batch(height, width, tiling)
        return decode_stage(self.machine, self.weights, work, self.sizes, batch)[0]

    def denoise(self, bucket: Bucket) -> Stage:
        if self.machine is None:
            return EVERYWHERE
        return self.plan(bucket, self.micro_batch(bucket)).denoise

    def together(self, bucket: Bucket) -> bool:
        """Whether pictures can be decoded while the transformer is on the card."""
        return self.machine is None or self.plan(bucket, self.micro_batch(bucket)).together

    def plan(self, bucket: Bucket, micro_batch: int | None = None) -> Plan:
        return self._plan(bucket, micro_batch)

    def _planned(self, bucket: Bucket, micro_batch: int | None) -> Plan:
        if self.machine is None or self.weights is None or self.sizes is None:
            raise SettingError("there is no card to plan for")
        work = self._work(bucket)
        return plan(
            self.machine,
            self.weights,
            work,
            self.sizes,
            text_batch=self.batching.text,
            micro_batch=micro_batch or self.batching.micro,
            decode_batch=self.batching.decode,
            least=self.batching.micro_batch(work.image_tokens),
        )

    def _work(self, bucket: Bucket) -> Work:
        return Work(
            height=bucket.height,
            width=bucket.width,
            image_tokens=self._tokens(bucket.height, bucket.width),
            text_tokens=bucket.t5_sequence_length,
            steps=bucket.steps,
            sides=1 + bucket.guided,
        )

    def _picture(self, height: int, width: int, tiling: Tiling | None) -> Work:
        """What the autoencoder has before it at once: a picture, or a tile of it."""
        side = max(height, width) if tiling is None else tiling.size * self.cell // PATCH
        height, width = min(height, side), min(width, side)
        return Work(height=height, width=width, image_tokens=0, text_tokens=0, steps=0)

    def _tokens(self, height: int, width: int) -> int:
        return (height // self.cell) * (width // self.cell)


def sizes_of(dit: FluxTransformer, vae: AutoEncoder, t5: Any, itemsize: int) -> Sizes:
    """Widths that estimates are made of, for computing in numbers of so many bytes."""
    stored = dit.single_blocks[0] if dit.single_blocks else dit.double_blocks[0]
    return Sizes(
        width=dit.spec.width,
        inner=dit.spec.inner,
        rows=sum(part.MODULATIONS for part in dit.modulated_parts()),
        channels=dit.spec.channels_in,
        itemsize=itemsize,
        stored=min(weight.itemsize for weight in stored.parameters()),
        text_width=t5.config.d_model,
        text_inner=t5.config.d_ff,
        text_heads=t5.config.num_heads,
        pixel_width=vae.spec.widths[0],
    )


def _named(bucket: Bucket) -> str:
    """All of a bucket that a batch shape may depend on."""
    sides = " guided" if bucket.guided else ""
    return f"{bucket.height}x{bucket.width} text {bucket.t5_sequence_length}{sides}"
