import pytest
import torch

from batch.targets.questions import levelled, levels_of, queries_of, tensors_of
from flux_engine.teacher import Answer
from schemas.targets import FeatureTarget, VelocityTarget
from tests.flux_engine.asking import asked, noise

TARGET = VelocityTarget(timesteps=(0.25, 0.75), guidance=(1.0, 3.0), unconditional=True)


def test_each_level_is_asked_about_with_each_guidance_and_without() -> None:
    row = levelled(TARGET, "ab", noise(1, 16, 8, 8), 2.0, "float16")
    request = asked("owl", negative_prompt="bad")
    found = list(queries_of(TARGET, 5, request, row))
    places = [(q.row, q.level, q.guidance) for q, _ in found]
    assert places == [(5, 0, 0), (5, 0, 1), (5, 0, -1), (5, 1, 0), (5, 1, 1), (5, 1, -1)]
    assert [query.embedded_guidance for _, query in found[:3]] == [1.0, 3.0, 1.0]
    assert [query.prompt for _, query in found[:3]] == ["owl", "owl", "bad"]
    assert [query.sigma for _, query in found] == [0.25] * 3 + [0.75] * 3
    assert torch.equal(row.latent, noise(1, 16, 8, 8).half().float())
    assert len(set(row.hashes)) == len(row.seeds) == 2


def test_answers_are_put_together_by_level_and_guidance() -> None:
    row = levelled(TARGET, "ab", noise(1, 16, 8, 8), 2.0, "float32")
    answers = {
        (m, g): Answer(velocity=torch.full((16, 8, 8), 10.0 * m + g), micro_batch=2)
        for m in range(2)
        for g in (0, 1, -1)
    }
    made = tensors_of(TARGET, row, answers)
    assert made["v_cond"].shape == (2, 2, 16, 8, 8)
    assert made["v_cond"][1, 0].eq(10).all()
    assert made["v_uncond"][1].eq(9).all()
    assert torch.equal(made["latent"], row.latent)


def test_without_a_word_of_guidance_it_is_the_rows_own() -> None:
    target = FeatureTarget(taps=("single_blocks.0",), timesteps=(0.5,))
    row = levelled(target, "ab", noise(1, 16, 8, 8), 2.5, "float16")
    assert row.guidances == (2.5,)
    taps = {"single_blocks.0": torch.ones(36, 8)}
    answers = {(0, 0): Answer(velocity=torch.zeros(16, 8, 8), taps=taps, micro_batch=2)}
    assert set(tensors_of(target, row, answers)) == {"latent", "tap_single_blocks_0"}


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_drawn_levels_are_the_rows_alone_and_spread_as_asked(distribution: str) -> None:
    target = VelocityTarget(queries=500, distribution=distribution)  # type: ignore[arg-type]
    levels = torch.tensor(levels_of(target, "ab"))
    assert levels_of(target, "ab") == levels_of(target, "ab") != levels_of(target, "cd")
    assert levels.min() > 0
    assert levels.max() < 1
    assert levels.mean() == pytest.approx(0.5, abs=0.05)
    spread = 0.289 if distribution == "uniform" else 0.208
    assert levels.std() == pytest.approx(spread, abs=0.03)
