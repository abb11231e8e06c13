import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import training_speed
from benchmarks.training_speed import Bench, Case, Row, cases, forward_flop, line, ratios
from flux_engine.models.dit import FluxSpec
from tests.parity.diffsynth_oracle import LIBRARY

HEAVY = ("ray", "pydantic", "pyarrow", "typer", "modelscope", "peft", "diffusers")


def test_it_is_imported_on_a_machine_that_has_little_more_than_torch() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY)
    code = f"import sys; {blocked}; import benchmarks.training_speed"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("side", "tflop"), [(512, 66), (1024, 237)])
def test_the_work_of_a_step_is_that_of_the_published_sizes(side: int, tflop: float) -> None:
    forward = forward_flop(FluxSpec(), (side // 16) ** 2, 512)
    assert 3 * forward / 1e12 == pytest.approx(tflop, rel=0.07)  # forward, again, and back


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_speed, "WARM", 0)
    monkeypatch.setattr(training_speed, "TIMED", 1)


@pytest.mark.usefixtures("quick")
def test_ours_and_the_peer_take_steps_and_each_row_is_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "results" / "rows.json"
    bench = Bench("tiny", torch.device("cpu"), seconds=600, file=file)
    ordered = Case("blocks", 64, 1, ordered=True)
    for n, case in enumerate((Case("blocks", 64, 2), ordered, Case(None, 64)), 1):
        bench.measure(case)
        told = json.loads(file.read_text())
        assert [row["name"] for row in told["rows"]] == [row.name for row in bench.rows]
        assert len(told["rows"]) == n
    ours, repeated, peer = bench.rows
    assert not ours.absent + repeated.absent
    assert ours.samples_per_second > 0
    assert ours.executed_tflop == pytest.approx(1.5 * ours.useful_tflop)
    assert not peer.absent or "not installed" in peer.absent
    assert not torch.are_deterministic_algorithms_enabled()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.usefixtures("quick")
def test_weights_are_made_once_and_no_row_changes_them() -> None:
    bench = Bench("tiny", torch.device("cpu"), seconds=600)
    before = {name: tensor.clone() for name, tensor in bench.weights.items()}
    for case in (Case("none", 64), Case("offload", 64), Case(None, 64)):
        bench.measure(case)
    one, other = bench.transformer(), bench.transformer()
    for name, parameter in one.named_parameters():
        assert parameter.data_ptr() == bench.weights[name].data_ptr()
        assert torch.equal(bench.weights[name], before[name])
    assert "forward" not in other.double_blocks[0].__dict__


@pytest.mark.usefixtures("quick")
def test_a_peer_that_cannot_be_imported_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    bench = Bench("tiny", torch.device("cpu"), seconds=600)
    bench.measure(Case(None, 64))
    (row,) = bench.rows
    assert "peft" in row.absent or "not installed" in row.absent


@pytest.mark.skipif(not LIBRARY.is_dir(), reason="make test installs the peer")
def test_the_peer_is_imported_without_modelscope() -> None:
    lacking = ("ray", "pydantic", "pyarrow", "typer", "modelscope", "diffusers")
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in lacking)
    code = f"""
import sys; {blocked}
import torch
from benchmarks import training_speed
from benchmarks.training_speed import Bench, Case
training_speed.WARM, training_speed.TIMED = 0, 1
bench = Bench("tiny", torch.device("cpu"), 600)
bench.measure(Case(None, 64))
assert not bench.rows[0].absent, bench.rows[0].absent
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_goals_come_first_and_everything_once() -> None:
    full = cases("full")
    assert full[:3] == [
        Case("blocks", 512, 4), Case("blocks", 512, 4, ordered=True), Case(None, 512),
    ]  # fmt: skip
    assert len(set(full)) == len(full)
    assert {(c.mode, c.side, c.batch) for c in full if c.mode} >= {
        (mode, side, batch)
        for mode in ("none", "blocks", "offload")
        for side in (512, 1024)
        for batch in (1, 4, 8)
    }
    assert not any(case.ordered for case in cases("tiny"))


def test_ratios_are_told_of_what_both_have_run() -> None:
    rows = [
        Row("ours, checkpointing none", 512, 4, seconds=0.5, samples_per_second=8.0),
        Row("ours, checkpointing none, ordered", 512, 4, seconds=1.0, samples_per_second=6.0),
        Row("ours, checkpointing none", 1024, 4, absent="out of memory"),
        Row("DiffSynth", 512, 1, seconds=0.25, samples_per_second=4.0),
        Row("DiffSynth", 1024, 1, seconds=0.5, samples_per_second=2.0),
    ]
    assert [text.split(":")[2] for text in ratios(rows)] == [
        " 2.00 samples/s (goal 1.5, on a card)",
        " 1.50 samples/s (goal 1.5, on a card)",
    ]
    assert "not run: out of memory" in line(rows[2])
    shares = replace(rows[0], useful_share=0.3, executed_share=0.45)
    assert "30.0% of peak useful,  45.0% executed" in line(shares)


def test_what_there_is_no_time_for_is_named() -> None:
    bench = Bench("tiny", torch.device("cpu"), seconds=-1)
    bench.run()
    assert {row.absent for row in bench.rows} == {"no time was left"}
    assert len(bench.rows) == len(cases("tiny"))
