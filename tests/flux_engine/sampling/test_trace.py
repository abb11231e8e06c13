import pytest
import torch

from flux_engine.sampling.trace import Recorder, bounds, nothing, states


@pytest.mark.parametrize(
    ("steps", "segments", "ends"),
    [
        (4, None, (0, 1, 2, 3, 4)),
        (4, 2, (0, 2, 4)),
        (5, 2, (0, 2, 5)),
        (3, 9, (0, 1, 2, 3)),
        (28, 4, (0, 7, 14, 21, 28)),
        (1, 1, (0, 1)),
    ],
)
def test_segments_are_as_even_as_can_be(
    steps: int, segments: int | None, ends: tuple[int, ...]
) -> None:
    assert bounds(steps, segments) == ends


@pytest.mark.parametrize("segments", [None, 1, 3])
def test_a_segments_velocity_leads_from_its_beginning_to_its_end(segments: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.linspace(1.0, 0.0, 8).square().tolist()
    velocities = torch.randn(7, 2, 5, 3, generator=generator)
    x = [torch.randn(2, 5, 3, generator=generator)]
    ends = bounds(7, segments)
    recorder = Recorder(sigmas, ends)
    for n in range(7):
        recorder(n, velocities[n])
        x.append(x[-1] + (sigmas[n + 1] - sigmas[n]) * velocities[n])
    kept = recorder.velocities()
    assert kept.shape == (2, len(ends) - 1, 5, 3)
    for row in range(2):
        rebuilt = states(x[0][row], kept[row], [sigmas[end] for end in ends])
        for end, state in zip(ends, rebuilt, strict=True):
            torch.testing.assert_close(state, x[end][row], rtol=1e-5, atol=1e-5)


def test_nothing_is_kept_unless_asked() -> None:
    nothing(0, torch.ones(1))
