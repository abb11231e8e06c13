import pytest
import torch

from flux_engine.errors import SettingError
from flux_engine.sampling.schedule import flux_shift
from flux_engine.training.timesteps import Fixed, Table, Timesteps, bell, table, timesteps, weight
from tests.flux_engine.training.rows import draws

COUNT = 8000


def drawn(of: Timesteps, count: int = COUNT, *, tokens: int = 4096, **share: float) -> torch.Tensor:
    random = draws(1)
    return torch.tensor([of.draw(random, tokens=tokens, **share).sigma for _ in range(count)])


def test_uniform_levels_are_uniform_and_repeatable() -> None:
    sigma = drawn(timesteps("uniform"))
    assert torch.equal(sigma, drawn(timesteps("uniform")))
    torch.testing.assert_close(
        sigma.quantile(torch.tensor([0.1, 0.5, 0.9])),
        torch.tensor([0.1, 0.5, 0.9]),
        atol=0.02,
        rtol=0,
    )


def test_logit_normal_levels_have_the_mean_and_spread_asked_for() -> None:
    logits = torch.logit(drawn(timesteps("logit_normal", mean=0.5, spread=0.8)))
    assert abs(logits.mean().item() - 0.5) < 0.03
    assert abs(logits.std().item() - 0.8) < 0.03


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_a_shift_bends_every_level_towards_noise(name: str) -> None:
    u, sigma = drawn(timesteps(name)), drawn(timesteps(name, shift=3.0))  # type: ignore[arg-type]
    torch.testing.assert_close(sigma, 3 * u / (1 + 2 * u))


def test_the_shift_of_flux_grows_with_the_picture() -> None:
    u = drawn(timesteps("logit_normal"))
    for tokens in (256, 4096):
        shift = flux_shift(tokens)
        expected = shift * u / (1 + (shift - 1) * u)
        torch.testing.assert_close(drawn(timesteps("flux_shift"), tokens=tokens), expected)


@pytest.mark.parametrize("exact", [True, False])
def test_the_tables_levels_have_the_published_statistics(exact: bool) -> None:
    time = 1000 * drawn(Table(exact))
    assert abs(time.mean() - 677.9) < 8
    assert abs(time.median() - 750.7) < 10
    assert abs((time > 900).float().mean() - 0.251) < 0.015
    assert abs((time > 500).float().mean() - 0.752) < 0.015


def test_rounding_to_bfloat16_leaves_351_levels_that_are_told_as_rounded() -> None:
    random = draws()
    levels = [Table().draw(random, tokens=1) for _ in range(30_000)]
    assert 345 <= len({level.told for level in levels}) <= 351
    for level in levels[:500]:
        assert level.told * 1000 == pytest.approx(float(torch.tensor(1000 * level.told).bfloat16()))
        assert abs(level.sigma - level.told) <= 0.0021
        assert float((table() - level.sigma).abs().min()) == 0
    exact = [Table(exact=True).draw(random, tokens=1) for _ in range(500)]
    assert all(level.sigma == pytest.approx(level.told, abs=1e-7) for level in exact)


@pytest.mark.parametrize("name", ["uniform", "logit_normal", "flux_shift", "diffsynth_exact"])
def test_a_row_can_keep_to_a_share_of_the_levels(name: str) -> None:
    whole, noisy, clean = (
        drawn(timesteps(name), 2000, low=low, high=high)  # type: ignore[arg-type]
        for low, high in ((0.0, 1.0), (0.0, 0.3), (0.3, 1.0))
    )
    edge = whole.quantile(0.7)
    assert noisy.min() > edge - 0.05
    assert clean.max() < edge + 0.05


def test_the_bell_weighs_as_published() -> None:
    published = {
        1000: 0.0, 950: 0.2765, 900: 0.5442, 800: 1.0418, 750: 1.2585, 700: 1.4448, 600: 1.704,
        500: 1.7943, 400: 1.7035, 300: 1.4421, 200: 1.0423, 100: 0.5485, 50: 0.2714, 8.93: 0.0494,
    }  # fmt: skip
    for time, expected in published.items():
        # the nearest of the table's levels is up to three away
        assert weight("diffsynth", time / 1000) == pytest.approx(expected, abs=2e-3)
    assert float(bell().sum()) == pytest.approx(1000, abs=1e-2)
    assert int(bell().argmax()) == int((table() - 0.5).abs().argmin())


def test_other_weights_are_their_formulas() -> None:
    assert weight("none", 0.3) == 1
    assert weight("sigma_sqrt", 0.5) == 4
    assert weight("cosmap", 0.5) == pytest.approx(4 / 3.141592653589793)


def test_an_option_that_has_no_effect_is_refused() -> None:
    with pytest.raises(SettingError, match=r"diffsynth have no shift; allowed are: no options"):
        timesteps("diffsynth", shift=3.0)
    with pytest.raises(SettingError, match=r"uniform have no mean and no spread.*shift"):
        timesteps("uniform", mean=1.0, spread=1.0)
    with pytest.raises(SettingError, match="above 0"):
        timesteps("uniform", shift=-1.0)


def test_a_fixed_level_is_always_that() -> None:
    assert Fixed(0.25).draw(draws(), tokens=9).told == 0.25
