"""The toy models that are timed, and the rounds of requests that everybody is asked."""

from dataclasses import dataclass

from flux_engine.models.dit import FluxSpec
from flux_engine.models.vae import VaeSpec
from flux_engine.request import GenerationRequest, Schedule
from tests.parity.tiny import TextSpec, TinySpec

TEXT_TOKENS = 32  # to 256² what the published 512 are to 1024²
STEPS = 4
ROWS = 4  # requests of a round

SMALL_CLIP = TextSpec(width=256, inner=1024, layers=4)
SMALL_T5 = TextSpec(width=256, inner=512, layers=4)
SMALL_VAE = VaeSpec(widths=(32, 64, 64, 64))


@dataclass(frozen=True)
class SmallSpec(TinySpec):
    """Wide enough for matrix products to cost more than Python does."""

    clip: TextSpec = SMALL_CLIP
    t5: TextSpec = SMALL_T5
    vae: VaeSpec = SMALL_VAE

    @property
    def flux(self) -> FluxSpec:
        return FluxSpec(
            width=512, heads=8, axes=(8, 28, 28), inner=2048, double_blocks=3, single_blocks=6,
            text_width=self.t5.width, pooled_width=self.clip.width, guidance=self.guidance,
        )  # fmt: skip


TOYS: dict[str, TinySpec] = {"tiny": TinySpec(), "small": SmallSpec()}


@dataclass(frozen=True, kw_only=True)
class Round:
    """Requests of one size; no two rounds share a prompt, so that no text is remembered."""

    number: int
    side: int
    schedule: Schedule

    def requests(self) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                prompt=f"the red fox {i} of round {self.number}, {self.side} by {self.schedule}",
                seed=1000 * self.number + i,
                height=self.side,
                width=self.side,
                num_inference_steps=STEPS,
                t5_sequence_length=TEXT_TOKENS,
                schedule=self.schedule,
            )
            for i in range(ROWS)
        ]
