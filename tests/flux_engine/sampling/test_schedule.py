import math

import pytest
import torch

from flux_engine.request import Schedule
from flux_engine.sampling.schedule import flux_shift, shift_of, sigmas


def levels(schedule: Schedule, steps: int, shift: float, strength: float = 1.0) -> list[float]:
    return sigmas(schedule, steps, shift, strength).tolist()


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [
        (4, [1, 0.857692, 0.602151], [0.008929]),
        (30, [1, 0.988271, 0.975979, 0.963082], [0.188245, 0.104323, 0.008929]),
        (50, [1, 0.993124], [0.066900, 0.008929]),
    ],
)
def test_the_fixed_shift_grid_is_diffsynths(
    steps: int, first: list[float], last: list[float]
) -> None:
    made = levels("diffsynth", steps, 3.0)
    assert len(made) == steps + 1
    assert made[: len(first)] == pytest.approx(first, abs=1e-6)
    assert made[-len(last) - 1 :] == pytest.approx([*last, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("strength", "first"), [(0.99, 0.996654), (0.6, 0.818923), (0.5, 0.751121)]
)
def test_diffsynth_runs_all_steps_from_a_lower_start(strength: float, first: float) -> None:
    made = levels("diffsynth", 30, 3.0, strength)
    assert len(made) == 31
    assert made[0] == pytest.approx(first, abs=1e-6)
    assert made[-2] == pytest.approx(0.008929, abs=1e-6)


def test_diffsynth_without_a_shift_ends_at_its_smallest_level() -> None:
    assert levels("diffsynth", 30, 1.0)[-2] == pytest.approx(0.002994, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "mu", "shift"),
    [(256, 0.5, math.exp(0.5)), (1024, 0.63, 1.878), (2304, 0.8467, 2.332), (4096, 1.15, 3.158),
     (9216, 2.0167, 7.513)],
)  # fmt: skip
def test_the_published_shift_grows_with_the_picture(tokens: int, mu: float, shift: float) -> None:
    assert math.log(flux_shift(tokens)) == pytest.approx(mu, abs=5e-5)
    assert flux_shift(tokens) == pytest.approx(shift, abs=5e-4)


def test_who_decides_about_the_shift() -> None:
    assert shift_of("flux", 4096, None, timestep_shift=True) == flux_shift(4096)
    assert shift_of("flux", 4096, None, timestep_shift=False) == 1.0  # FLUX.1-schnell
    assert shift_of("diffsynth", 4096, None, timestep_shift=True) == 3.0
    assert shift_of("diffsynth", 1024, None, timestep_shift=False) == 3.0
    for schedule in ("flux", "diffsynth"):
        assert shift_of(schedule, 4096, 1.7, timestep_shift=True) == 1.7  # what was asked for


def test_without_a_shift_steps_are_even() -> None:
    assert levels("flux", 4, 1.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("schedule", ["flux", "diffsynth"])
@pytest.mark.parametrize("steps", [1, 2, 30])
@pytest.mark.parametrize("strength", [0.01, 0.5, 1.0])
def test_levels_fall_to_zero_in_one_step_at_least(
    schedule: Schedule, steps: int, strength: float
) -> None:
    made = sigmas(schedule, steps, 3.0, strength)
    assert made.dtype == torch.float32
    assert len(made) >= 2
    assert (made.diff() < 0).all()
    assert made[-1] == 0
    assert made[0] == 1 or strength < 1


def test_the_least_strength_leaves_one_step() -> None:
    assert levels("flux", 30, 3.0, 1e-20) == levels("flux", 30, 3.0)[-2:]


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(64, 64), (512, 768), (1024, 1024), (2048, 1536)])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_published_levels_are_those_of_diffusers(size: tuple[int, int], steps: int) -> None:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    tokens = (size[0] // 16) * (size[1] // 16)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    made = sigmas("flux", steps, shift_of("flux", tokens, None, timestep_shift=True))
    torch.testing.assert_close(made, theirs.sigmas, rtol=0, atol=1.2e-7)


@pytest.mark.oracle
@pytest.mark.parametrize("steps", [1, 4, 28, 50])
@pytest.mark.parametrize("strength", [0.01, 0.3, 0.35, 0.6, 0.99, 1.0])
def test_steps_by_strength_are_counted_as_in_diffusers(steps: int, strength: float) -> None:
    """Down to its refusal: where it has no step left, we take the last one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

    class Pipeline:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)

    Pipeline.scheduler.set_timesteps(steps)
    _, left = FluxImg2ImgPipeline.get_timesteps(Pipeline(), steps, strength, "cpu")
    assert len(sigmas("flux", steps, 1.0, strength)) - 1 == max(left, 1)
