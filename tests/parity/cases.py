"""What ours and the other implementations are asked: cases of four requests each.

The rows of a case differ in prompt, seed and embedded guidance (in guidance by a negative prompt
also in its factor), and share what a micro-batch shares. Prompts cover the empty one, one that
both tokenizers cut, and letters that T5's vocabulary lacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flux_engine.request import GenerationRequest, Schedule
from tests.parity.pictures import picture
from tests.parity.tiny import T5_TOKENS, TinySpec

PROMPTS = (
    "the red fox and the hound",
    "",
    "a café at night, rain on the window",
    "a long list of things in the attic: " + "an old lamp, a broken chair, the red hat; " * 4,
)
NEGATIVES = ("blurry", "a photograph of the sea", "", "dark, low contrast, watermark")
SEEDS = (0, 7, 123456789, 2**40 + 5)
GUIDANCES = (3.5, 1.0, 2.2, 7.5)
FACTORS = {"flux": (1.5, 2.0, 4.0, 3.1), "diffsynth": (1.5, 0.5, 4.0, 3.1)}
SCHEDULES: tuple[Schedule, ...] = ("flux", "diffsynth")

SPECS = DEV, SCHNELL = TinySpec(guidance=True), TinySpec(guidance=False)


@dataclass(frozen=True)
class Case:
    """Requests that one toy model serves; the schedule decides who is the oracle."""

    name: str
    spec: TinySpec
    requests: tuple[GenerationRequest, ...]

    @property
    def schedule(self) -> Schedule:
        return self.requests[0].schedule

    @property
    def pictured(self) -> bool:
        """Whether its golden file keeps a picture beside the latents."""
        return self.requests[0].num_inference_steps == 4


def case(name: str, schedule: Schedule, spec: TinySpec = DEV, **shared: Any) -> Case:
    common = {"height": 64, "width": 64, "num_inference_steps": 4} | shared
    rows = tuple(
        GenerationRequest(
            prompt=prompt,
            seed=seed,
            embedded_guidance=guidance,
            schedule=schedule,
            t5_sequence_length=T5_TOKENS,
            **common,
        )
        for prompt, seed, guidance in zip(PROMPTS, SEEDS, GUIDANCES, strict=True)
    )
    return Case(f"{schedule}_{name}", spec, rows)


def guided(plain: Case) -> Case:
    """With a negative prompt and a factor for each row."""
    rows = zip(plain.requests, NEGATIVES, FACTORS[plain.schedule], strict=True)
    return replace(
        plain,
        requests=tuple(
            replace(row, negative_prompt=negative, cfg_scale=factor)
            for row, negative, factor in rows
        ),
    )


def from_pictures(plain: Case, strength: float) -> Case:
    """Starting from a picture for each row."""
    return replace(
        plain,
        requests=tuple(
            replace(
                row,
                input_image=picture(11 + i, row.height, row.width),
                denoising_strength=strength,
            )
            for i, row in enumerate(plain.requests)
        ),
    )


def cases() -> Iterator[Case]:
    """Every case, both schedules alike."""
    tall_30: dict[str, Any] = {"height": 96, "width": 64, "num_inference_steps": 30}
    wide_4: dict[str, Any] = {"height": 64, "width": 96}
    for schedule in SCHEDULES:
        yield case("dev_4", schedule)
        yield case("dev_tall_30", schedule, **tall_30)
        yield case("dev_shift_4", schedule, sigma_shift=1.7, **wide_4)
        yield case("schnell_4", schedule, SCHNELL)
        yield case("schnell_tall_30", schedule, SCHNELL, **tall_30)
        yield guided(case("dev_cfg_4", schedule))
        yield guided(case("schnell_cfg_tall_30", schedule, SCHNELL, **tall_30))
        yield from_pictures(case("dev_img2img_4", schedule), 0.35)
        yield from_pictures(case("dev_img2img_tall_30", schedule, **tall_30), 0.6)
        yield from_pictures(guided(case("dev_cfg_img2img_4", schedule)), 0.6)


CASES = tuple(cases())


def cases_of(schedule: Schedule, spec: TinySpec) -> list[Case]:
    """What one oracle is asked of one model."""
    return [case for case in CASES if case.schedule == schedule and case.spec == spec]
