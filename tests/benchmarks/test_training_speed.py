import subprocess
import sys

import pytest
import torch

from benchmarks import training_speed
from benchmarks.training_speed import Bench, Row, forward_flop, line, ratios
from flux_engine.models.dit import FluxSpec

HEAVY = ("ray", "pydantic", "pyarrow", "typer", "modelscope", "peft", "diffusers")


def test_it_is_imported_on_a_machine_that_has_little_more_than_torch() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY)
    code = f"import sys; {blocked}; import benchmarks.training_speed"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("side", "tflop"), [(512, 66), (1024, 237)])
def test_the_work_of_a_step_is_that_of_the_published_sizes(side: int, tflop: float) -> None:
    forward = forward_flop(FluxSpec(), (side // 16) ** 2, 512)
    assert 3 * forward / 1e12 == pytest.approx(tflop, rel=0.07)  # forward, again, and back


def test_ours_and_the_peer_take_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_speed, "WARM", 0)
    monkeypatch.setattr(training_speed, "TIMED", 1)
    bench = Bench("tiny", torch.device("cpu"), seconds=600)
    bench._measured("ours", 64, 2, lambda: bench.ours("blocks", 64, 2))
    bench._measured("DiffSynth", 64, 1, lambda: bench.diffsynth(64))
    ours, peer = bench.rows
    assert not ours.absent
    assert ours.samples_per_second > 0
    assert not peer.absent or "not installed" in peer.absent


def test_ratios_are_told_of_what_both_have_run() -> None:
    rows = [
        Row("ours, checkpointing none", 512, 4, seconds=0.5, samples_per_second=8.0),
        Row("ours, checkpointing none", 1024, 4, absent="out of memory"),
        Row("DiffSynth", 512, 1, seconds=0.25, samples_per_second=4.0),
        Row("DiffSynth", 1024, 1, seconds=0.5, samples_per_second=2.0),
    ]
    assert [text.split(":")[2] for text in ratios(rows)] == [
        " 2.00 samples/s (goal 1.5, on a card)"
    ]
    assert "not run: out of memory" in line(rows[1])


def test_what_there_is_no_time_for_is_named() -> None:
    bench = Bench("tiny", torch.device("cpu"), seconds=-1)
    bench.run()
    assert {row.absent for row in bench.rows} == {"no time was left"}
