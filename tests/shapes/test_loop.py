"""A stage that was cut short ends as if it had not been."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shapes.loop import Journal, Schedule, train
from shapes.world import keyed

SCHEDULE = Schedule(steps=7, rate=0.1, warmup=2, keep_every=2, averaging=0.9)


def fit(folder: Path, dies_at: int | None = None) -> nn.Linear:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)

    def loss_of(step: int) -> Tensor:
        if step == dies_at:
            raise KeyboardInterrupt
        loss: Tensor = net(torch.randn(4, 3, generator=keyed("toy", step))).square().mean()
        return loss

    journal = Journal(folder / "toy.jsonl")
    train(net, loss_of, SCHEDULE, checkpoint=folder / "toy.safetensors", journal=journal)
    return net


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", dies_at=5)
    resumed = fit(tmp_path / "cut")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_finished_stage_is_read_back_and_not_repeated(tmp_path: Path) -> None:
    first = fit(tmp_path)
    again = fit(tmp_path, dies_at=0)
    assert torch.equal(first.weight, again.weight)


def test_the_journal_holds_each_step_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    for step in (0, 25, 50):
        journal.write(step=step)
    journal.forget_after(50)
    journal.write(step=50)
    steps = [json.loads(line)["step"] for line in journal.path.read_text().splitlines()]
    assert steps == [0, 25, 50]


def test_the_rate_warms_up_and_falls_to_a_fiftieth() -> None:
    schedule = Schedule(steps=1000, rate=1.0, warmup=10)
    assert schedule.rate_at(0) == pytest.approx(0.1)
    assert schedule.rate_at(9) == pytest.approx(1.0, abs=1e-3)
    assert schedule.rate_at(999) == pytest.approx(0.02, abs=1e-3)
