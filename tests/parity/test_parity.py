"""The engine against the golden files: what diffusers and DiffSynth-Studio made of the cases."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flux_engine import FluxEngine, load_engine
from flux_engine.request import GenerationRequest
from tests.parity import goldens
from tests.parity.agreement import (
    LATENTS,
    assert_latents_agree,
    assert_pixels_agree,
    deviation,
)
from tests.parity.cases import CASES, Case
from tests.parity.tiny import TinySpec

BY_NAME = {case.name: case for case in CASES}
Engines = Callable[[TinySpec, int], FluxEngine]


@pytest.fixture(scope="module")
def engines(folders: dict[TinySpec, Path]) -> Engines:
    """The engine of a toy model, by its micro-batch; each is loaded once."""
    loaded: dict[tuple[TinySpec, int], FluxEngine] = {}

    def engine(spec: TinySpec, micro_batch: int) -> FluxEngine:
        key = (spec, micro_batch)
        if key not in loaded:
            loaded[key] = load_engine(
                folders[spec], torch_dtype=torch.float32, device="cpu", micro_batch=micro_batch
            )
        return loaded[key]

    return engine


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_come_out_as_from_the_oracle(case: Case, micro_batch: int, engines: Engines) -> None:
    golden = goldens.read(case.name)
    made = engines(case.spec, micro_batch).generate(case.requests)
    assert [generation.micro_batch for generation in made] == [micro_batch] * len(made)
    assert_latents_agree(torch.stack([generation.latents for generation in made]), golden.latents)
    if golden.pixels is not None:
        assert_pixels_agree(made[0].pixels, golden.pixels)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("flux_dev_4", {"prompt": "the red fox and a hound"}),
        ("flux_dev_4", {"seed": 1}),
        ("flux_dev_4", {"embedded_guidance": 3.49}),
        ("flux_dev_4", {"t5_sequence_length": 31}),
        ("flux_dev_4", {"sigma_shift": 1.0}),
        ("flux_dev_4", {"schedule": "diffsynth"}),
        ("diffsynth_dev_4", {"schedule": "flux"}),
        ("diffsynth_dev_shift_4", {"sigma_shift": None}),
        ("flux_dev_cfg_4", {"cfg_scale": 1.49}),
        ("flux_dev_cfg_4", {"negative_prompt": "blurred"}),
        ("flux_dev_img2img_4", {"denoising_strength": 0.6}),
        ("diffsynth_dev_img2img_4", {"denoising_strength": 0.36}),
        ("flux_dev_img2img_4", {"input_image": torch.zeros(3, 64, 64)}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_another_request_does_not_pass(
    name: str, changed: dict[str, Any], engines: Engines
) -> None:
    case = BY_NAME[name]
    request: GenerationRequest = replace(case.requests[0], **changed)
    (made,) = engines(case.spec, 1).generate([request])
    assert deviation(made.latents, goldens.read(name).latents[0]) > 50 * LATENTS
