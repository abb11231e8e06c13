import math

import pytest

from schemas.base import SchemaError
from schemas.sampling import PUBLISHED, ModelDefaults, Sampling, resolve


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("height", 65),
        ("width", 0),
        ("height", 10_000),
        ("embedded_guidance", math.nan),
        ("cfg_scale", math.inf),
        ("num_inference_steps", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("t5_sequence_length", 513),
        ("denoising_strength", 0.0),
        ("schedule", "karras"),
        ("rand_device", "tpu"),
        ("negative_prompt", "x" * 20_001),
    ],
)
def test_a_value_that_no_picture_can_have_is_refused(name: str, value: object) -> None:
    with pytest.raises(SchemaError, match=name):
        Sampling.parse({name: value})


def test_tiles_that_leave_gaps_are_refused() -> None:
    with pytest.raises(SchemaError, match="tile_stride 96 is larger than tile_size 64"):
        Sampling.parse({"tile_size": 64, "tile_stride": 96})


def test_the_job_wins_over_the_model_and_the_model_over_what_was_published() -> None:
    model = ModelDefaults(height=64, num_inference_steps=16, sigma_shift=1.5)
    said = resolve(Sampling(height=128), model)
    assert (said.height, said.num_inference_steps, said.sigma_shift) == (128, 16, 1.5)
    assert (said.width, said.embedded_guidance, said.t5_sequence_length) == (1024, 3.5, 512)


def test_only_seed_and_shift_stay_open() -> None:
    said = resolve(Sampling(), ModelDefaults())
    assert [k for k, v in said.model_dump().items() if v is None] == ["seed", "sigma_shift"]
    assert PUBLISHED.num_inference_steps == 30
