from typing import Any

import pytest
import torch

from flux_engine.errors import SettingError, TrainingError
from flux_engine.training.objective import Batch
from flux_engine.training.terms import PLAIN, Terms, level_of, told
from flux_engine.training.timesteps import Level, Smooth
from tests.flux_engine.asking import noise
from tests.flux_engine.training.rows import LATENT, batch, draws, row


def sampled(terms: Terms = PLAIN, **other: Any) -> Batch:
    material = row(**other)
    example = terms.sample(
        material,
        Level(0.5, 0.5),
        1.0,
        state=noise(3, *LATENT),
        others={"target": noise(4, *LATENT)},
    )
    return batch(example)


def test_errors_count_as_the_loss_type_says() -> None:
    one = sampled()
    off = one["x"] - one["target"]
    square, absolute = off.square(), off.abs()
    huber = torch.where(absolute < 0.5, 0.5 * square, 0.5 * (absolute - 0.25))
    for kind, expected in (("mse", square), ("mae", absolute), ("huber", huber)):
        terms = Terms(loss_type=kind, huber_delta=0.5 if kind == "huber" else 1.0)  # type: ignore[arg-type]
        torch.testing.assert_close(
            terms.compare(one["x"], one["target"], one), expected.mean()[None]
        )


def test_what_the_mask_leaves_out_counts_for_nothing() -> None:
    mask = torch.zeros(1, *LATENT[1:])
    mask[0, 0, 0], mask[0, 1, 2] = 1.0, 0.5
    one = sampled(mask_1HW=mask)
    off = (one["x"] - one["target"]).square()[0]
    expected = (off[:, 0, 0].mean() + 0.5 * off[:, 1, 2].mean()) / 1.5
    torch.testing.assert_close(Terms().compare(one["x"], one["target"], one)[0], expected)


def test_a_sample_counts_as_its_noise_level_says() -> None:
    plain, weighed = sampled(), sampled(Terms(weighting="sigma_sqrt"))
    torch.testing.assert_close(
        Terms().compare(weighed["x"], weighed["target"], weighed),
        4 * Terms().compare(plain["x"], plain["target"], plain),
    )


def test_guidance_is_fixed_drawn_or_the_rows() -> None:
    assert told(3.5, row(), draws(), "sft") == 3.5
    drawn = [told((1.0, 5.0), row(), draws(i), "sft") for i in range(50)]
    assert 1 <= min(drawn) < 2
    assert 4 < max(drawn) <= 5
    assert told("row", row(embedded_guidance=2.5), draws(), "sft") == 2.5
    with pytest.raises(TrainingError, match=r"row 4: has no embedded_guidance, which sft"):
        told("row", row(4), draws(), "sft")


def test_a_number_that_is_none_is_told_with_its_row() -> None:
    with pytest.raises(TrainingError, match="row 0: t5 has NaN"):
        sampled(t5_TW=torch.full((5, 24), float("nan")))


def test_sides_are_even() -> None:
    with pytest.raises(TrainingError, match=r"row 0: x is \(16, 3, 6\); height and width are even"):
        Terms().sample(row(), Level(1, 1), 1.0, state=noise(0, 16, 3, 6), others={})


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.5)])
def test_a_row_cannot_ask_for_no_levels(low: float, high: float) -> None:
    material = row(min_timestep_boundary=low, max_timestep_boundary=high)
    with pytest.raises(TrainingError, match="row 0: min_timestep_boundary is"):
        level_of(Smooth(), material, noise(0, *LATENT), draws())


def test_a_delta_that_nothing_has_is_refused() -> None:
    with pytest.raises(SettingError, match=r"huber_delta is 0.5, and loss_type mse has none"):
        Terms(huber_delta=0.5)
    with pytest.raises(SettingError, match=r"huber_delta is 0; it is above 0"):
        Terms(loss_type="huber", huber_delta=0)
