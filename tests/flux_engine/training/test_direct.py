from itertools import pairwise

import pytest
import torch

from flux_engine.errors import SettingError, TrainingError
from flux_engine.latents import start_noise
from flux_engine.sampling.schedule import sigmas
from flux_engine.training.direct import DirectDistill
from flux_engine.training.terms import Terms
from tests.flux_engine.asking import noise
from tests.flux_engine.training.rows import LATENT, Recorder, batch, draws, row


def test_all_steps_are_taken_from_the_noise_of_the_rows_seed() -> None:
    one = batch(DirectDistill().draw(row(seed=7, num_inference_steps=4), draws()))
    ask = Recorder()
    loss = DirectDistill().loss(ask, one)
    x, levels = start_noise(7, LATENT), sigmas("diffsynth", 4, 3.0)
    for n in range(4):
        assert torch.equal(ask.asked[n][0][0], x)
        assert ask.asked[n][1] == levels[n]
        x = x + (levels[n + 1] - levels[n]) * 0.5 * x
    torch.testing.assert_close(loss, (x - noise(2, *LATENT)).square().mean()[None])


def test_noise_that_the_row_has_comes_before_its_seed() -> None:
    eps = noise(5, *LATENT)
    made = DirectDistill(num_inference_steps=2).draw(row(seed=7, noise=eps), draws())
    assert torch.equal(made.tensors["x"], eps)


def test_the_gradient_passes_through_every_step() -> None:
    factor = torch.tensor(0.5, requires_grad=True)
    one = batch(DirectDistill(num_inference_steps=3).draw(row(seed=7), draws()))

    class Scaled(Recorder):
        def __call__(self, *told: torch.Tensor) -> torch.Tensor:
            return factor * told[0]

    (grad,) = torch.autograd.grad(DirectDistill().loss(Scaled(), one).sum(), factor)
    levels = one["sigmas"][0]
    shrink = torch.stack([1 + 0.5 * (b - a) for a, b in pairwise(levels)])
    x = one["x"] * shrink.prod()
    slope = sum((b - a) / s for a, b, s in zip(levels, levels[1:], shrink, strict=False))
    torch.testing.assert_close(grad, (2 * (x - one["x0"]) * x * slope).mean())


def test_rows_of_unlike_numbers_of_steps_share_a_batch_and_change_nothing() -> None:
    rows = [row(i, seed=i, num_inference_steps=steps) for i, steps in enumerate((2, 4))]
    examples = [DirectDistill().draw(one, draws()) for one in rows]
    together = DirectDistill().loss(Recorder(), batch(*examples))
    apart = [DirectDistill().loss(Recorder(), batch(one)) for one in examples]
    assert torch.equal(together, torch.cat(apart))


def test_the_schedule_of_flux_can_be_asked_for() -> None:
    made = DirectDistill(schedule="flux", sigma_shift=2.0, num_inference_steps=4)
    levels = made.draw(row(seed=1), draws()).tensors["sigmas"]
    assert torch.equal(levels, sigmas("flux", 4, 2.0))


def test_what_a_row_lacks_is_told() -> None:
    with pytest.raises(TrainingError, match="row 3: has no num_inference_steps"):
        DirectDistill().draw(row(3, seed=1), draws())
    with pytest.raises(TrainingError, match="row 3: has no seed and no noise"):
        DirectDistill(num_inference_steps=4).draw(row(3), draws())


def test_a_weight_that_means_nothing_here_is_refused() -> None:
    with pytest.raises(SettingError, match="weighting is diffsynth"):
        DirectDistill(terms=Terms(weighting="diffsynth"))
