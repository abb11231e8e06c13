import pytest
import torch

from flux_engine.errors import TrainingError
from flux_engine.training.sft import Sft
from flux_engine.training.timesteps import Fixed
from tests.flux_engine.asking import noise
from tests.flux_engine.training.rows import LATENT, Recorder, batch, draws, row


def test_the_target_is_the_velocity_of_the_line_on_which_the_state_lies() -> None:
    example = Sft(timesteps=Fixed(0.25)).draw(row(1), draws())
    x0 = noise(12, *LATENT)
    x, target = example.tensors["x"], example.tensors["target"]
    torch.testing.assert_close(x, x0 + 0.25 * target)
    torch.testing.assert_close(x - 0.25 * target, x0)


def test_a_student_that_knows_the_velocity_has_no_loss() -> None:
    one = batch(*(Sft().draw(row(i), draws(i)) for i in range(3)))
    ask = Recorder(answer=one["target"])
    assert Sft().loss(ask, one).tolist() == [0, 0, 0]
    x, sigma, t5, pooled, guidance = ask.asked[0]
    assert torch.equal(x, one["x"])
    assert torch.equal(sigma, one["sigma"])
    assert (t5.shape, pooled.shape, guidance.tolist()) == ((3, 5, 24), (3, 40), [1, 1, 1])


def test_a_sample_is_a_function_of_its_generator_alone() -> None:
    first, again, other = (Sft().draw(row(1), draws(seed)).tensors for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x"], other["x"])


def test_noise_is_as_strong_as_the_row_says() -> None:
    weak = Sft(timesteps=Fixed(1.0)).draw(row(noise_scale=0.5), draws())
    full = Sft(timesteps=Fixed(1.0)).draw(row(), draws())
    assert torch.equal(weak.tensors["x"], 0.5 * full.tensors["x"])


def test_a_row_without_a_latent_is_refused() -> None:
    with pytest.raises(TrainingError, match="row 2: has no latent, which sft needs"):
        Sft().draw(row(2, latent_ZHW=None), draws())
