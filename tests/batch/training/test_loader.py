"""Samples are made ahead, in the order of their steps, and do not depend on who made them."""

from pathlib import Path

import pytest
import torch

from batch.errors import JobError
from batch.training.curriculum import Curriculum
from batch.training.loader import Loader
from batch.training.look import checked
from flux_engine.training.objective import Example
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson


@pytest.fixture
def curriculum(tmp_path: Path, targets: Targets) -> Curriculum:
    return checked(lesson(tmp_path, targets("pair"), max_steps=5))


def samples(loader: Loader, first: int = 0) -> list[Example]:
    return [example for work in loader.steps(first) for _, made in work for example in made]


def same(one: list[Example], other: list[Example]) -> bool:
    return [e.name for e in one] == [e.name for e in other] and all(
        torch.equal(a.tensors[name], b.tensors[name])
        for a, b in zip(one, other, strict=True)
        for name in a.tensors
    )


def test_threads_change_nothing(curriculum: Curriculum) -> None:
    plain = samples(Loader(curriculum.stream, curriculum.maker))
    assert len(plain) == 5 * 2 * 2
    for threads in (1, 3):
        loader = Loader(curriculum.stream, curriculum.maker, threads=threads)
        assert same(samples(loader), plain)


def test_a_later_start_and_other_ranks_draw_the_same_samples(curriculum: Curriculum) -> None:
    plain = samples(Loader(curriculum.stream, curriculum.maker))
    assert same(samples(Loader(curriculum.stream, curriculum.maker), 3), plain[12:])
    second = samples(Loader(curriculum.stream, curriculum.maker, rank=1, world=2))
    assert same(second, [e for n, e in enumerate(plain) if n // 2 % 2 == 1])


def test_a_row_of_several_epochs_is_drawn_anew_each_time(curriculum: Curriculum) -> None:
    by_name: dict[str, list[float]] = {}
    for example in samples(Loader(curriculum.stream, curriculum.maker)):
        by_name.setdefault(example.name, []).append(float(example.tensors["sigma"]))
    assert any(len(levels) > 1 for levels in by_name.values())
    assert all(len(set(levels)) == len(levels) for levels in by_name.values())


def test_what_cannot_be_made_raises_in_its_turn_and_leaves_no_thread(
    curriculum: Curriculum,
) -> None:
    maker = curriculum.maker
    calls = []

    def failing(draft: object) -> list[Example]:
        calls.append(draft)
        if len(calls) == 4:
            raise JobError("row 17: no")
        return maker(draft)  # type: ignore[arg-type]

    loader = Loader(curriculum.stream, failing, threads=2)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="row 17"):
        samples(loader)
