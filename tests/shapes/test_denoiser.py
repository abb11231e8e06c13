"""The transformer's two stages learn, resume exactly, and hand over."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shapes import denoiser
from shapes.cache import Cache
from shapes.denoiser import Batch, train_guidance, train_teacher
from shapes.flow import Text
from shapes.loop import Schedule
from shapes.recipe import ONE
from shapes.recipe import TEXT_WIDTH as WIDTH
from shapes.world import keyed

RECIPE = replace(ONE, batch=2)
SCHEDULE = Schedule(steps=4, rate=1e-3, warmup=2, keep_every=2, averaging=0.9)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy_cache() -> Cache:
    random = keyed("toy cache")
    return Cache(
        torch.randn(6, 16, 64, generator=random),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        Text(torch.randn(3, ONE.text_length, WIDTH, generator=random), torch.randn(3, WIDTH)),
        Text(torch.zeros(1, ONE.text_length, WIDTH), torch.zeros(1, WIDTH)),
    )


def test_a_resumed_teacher_and_its_guidance_end_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, draw = toy_cache(), Batch.draw
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    teacher = train_teacher(tmp_path / "whole", RECIPE, cache, SCHEDULE, seed=0)
    guided = train_guidance(tmp_path / "whole", RECIPE, cache, SCHEDULE, teacher, seed=0)

    def dying(at: int) -> None:
        asked = iter(range(100))

        def stops(cache: Cache, random: torch.Generator, size: int) -> Batch:
            if next(asked) == at:
                raise KeyboardInterrupt
            return draw(cache, random, size)

        monkeypatch.setattr(denoiser.Batch, "draw", stops)

    dying(at=3)
    with pytest.raises(KeyboardInterrupt):
        train_teacher(tmp_path / "cut", RECIPE, cache, SCHEDULE, seed=0)
    monkeypatch.undo()
    again = train_teacher(tmp_path / "cut", RECIPE, cache, SCHEDULE, seed=0)
    dying(at=2)
    with pytest.raises(KeyboardInterrupt):
        train_guidance(tmp_path / "cut", RECIPE, cache, SCHEDULE, again, seed=0)
    monkeypatch.undo()
    guided_again = train_guidance(tmp_path / "cut", RECIPE, cache, SCHEDULE, again, seed=0)

    for one, other in ((teacher, again), (guided, guided_again)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_batch_is_a_function_of_its_key() -> None:
    a, b = (Batch.draw(toy_cache(), keyed("batch", 3), 5) for _ in range(2))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.weight, b.weight)


def test_guidance_weights_and_dropped_prompts_are_in_their_ranges() -> None:
    batch = Batch.draw(toy_cache(), keyed("many"), 4000)
    assert batch.weight.min() >= 1
    assert batch.weight.max() <= 5
    dropped = (batch.text.pooled == 0).all(1).float().mean()
    assert abs(dropped - 0.1) < 0.02
