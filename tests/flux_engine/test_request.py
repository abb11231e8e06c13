from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

from flux_engine.request import GenerationRequest
from tests.flux_engine.asking import asked


def test_a_request_that_says_little_asks_for_what_diffsynth_makes() -> None:
    request = GenerationRequest(prompt="an owl", seed=1)
    assert (request.height, request.width) == (1024, 1024)
    assert (request.cfg_scale, request.embedded_guidance) == (1.0, 3.5)
    assert (request.num_inference_steps, request.t5_sequence_length) == (30, 512)
    assert (request.tiled, request.tile_size, request.tile_stride) == (False, 128, 64)
    assert list(request.faults()) == []


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        asked().seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(("cfg_scale", "guided"), [(1.0, False), (0.5, True), (3.0, True)])
def test_every_factor_but_one_is_guidance(cfg_scale: float, guided: bool) -> None:
    assert asked(cfg_scale=cfg_scale).guided is guided


def test_requests_are_compared_by_what_they_say() -> None:
    one = asked(input_image=torch.zeros(3, 64, 64))
    assert one == replace(one)
    assert one != replace(one, seed=1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"denoising_strength": 0.0}, "denoising_strength is 0.0; allowed are 0 (excluded) to 1"),
        ({"denoising_strength": 1.01}, "denoising_strength is 1.01; "),
        ({"denoising_strength": float("nan")}, "denoising_strength is nan; "),
        ({"sigma_shift": 0.0}, "sigma_shift is 0.0; allowed is what is larger than 0"),
        ({"sigma_shift": float("nan")}, "sigma_shift is nan; "),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; allowed are 1 and more"),
        ({"t5_sequence_length": 0}, "t5_sequence_length is 0; allowed are 1 and more"),
        ({"tiled": True, "tile_size": 8, "tile_stride": 9}, "tile_stride is 9; allowed are 1 to"),
        ({"tiled": True, "tile_stride": 0}, "tile_stride is 0; "),
        ({"seed": 2**64}, f"seed is {2**64}; allowed are 64 bits"),
        ({"seed": -(2**63) - 1}, f"seed is {-(2**63) - 1}; "),
        ({"schedule": "karras"}, "schedule is 'karras'; allowed are flux, diffsynth"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_out_of_range_is_told_with_what_is_allowed(
    values: dict[str, Any], told: str
) -> None:
    (fault,) = asked(**values).faults()
    assert fault.startswith(told)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_every_seed_that_torch_takes_is_in_range(seed: int) -> None:
    assert list(asked(seed=seed).faults()) == []
    torch.Generator().manual_seed(seed)


def test_tiles_count_only_when_they_are_asked_for() -> None:
    assert list(asked(tile_size=8, tile_stride=9).faults()) == []
