import torch

from flux_engine.training.prior import Prior
from flux_engine.training.timesteps import Fixed
from tests.flux_engine.asking import noise
from tests.flux_engine.training.rows import LATENT, Recorder, batch, draws, row


def test_the_target_is_what_the_base_answers_at_the_same_question() -> None:
    one = batch(*(Prior(guidance=2.0).draw(row(i), draws(i)) for i in range(2)))
    bare = noise(9, 2, *LATENT)
    ask = Recorder(answer=torch.zeros(2, *LATENT), bare=bare)
    torch.testing.assert_close(Prior().loss(ask, one), bare.square().flatten(1).mean(1))
    asked, told = ask.asked
    assert all(torch.equal(a, b) for a, b in zip(asked, told, strict=True))


def test_states_lie_between_a_rows_latent_and_fresh_noise() -> None:
    ends = [Prior(timesteps=Fixed(s)).draw(row(), draws(1)).tensors["x"] for s in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(ends[0], noise(2, *LATENT))
    torch.testing.assert_close(ends[1], 0.5 * ends[0] + 0.5 * ends[2])


def test_any_row_with_a_latent_serves() -> None:
    states = noise(3, 2, *LATENT)
    made = Prior(timesteps=Fixed(0.0)).draw(row(latent_ZHW=None, states=states), draws())
    assert torch.equal(made.tensors["x"], states[-1])
    assert {"cache", "pair", "path", "pictures"} <= Prior.kinds
