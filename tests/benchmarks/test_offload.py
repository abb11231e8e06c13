import subprocess
import sys
from contextlib import AbstractContextManager

import pytest
import torch

from benchmarks import offload as benchmark
from benchmarks.denoisers import Step
from benchmarks.offload import Bench, run_part
from benchmarks.offload_table import ratios, row

CPU = torch.device("cpu")
HEAVY = ("ray", "pydantic", "pyarrow", "typer", "modelscope", "peft", "diffusers")


def test_it_is_imported_on_a_machine_that_has_little_more_than_torch() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY)
    code = f"import sys; {blocked}; import benchmarks.offload"
    subprocess.run([sys.executable, "-c", code], check=True)


def told(name: str, rows: int, seconds: float, **more: object) -> dict[str, object]:
    return {"name": name, "side": 1024, "rows": rows, "seconds": seconds * rows,
            "seconds_a_row": seconds, **more}  # fmt: skip


def value(lines: list[str], what: str) -> str:
    (line,) = (line for line in lines if line.strip().startswith(what))
    return line.split("1024")[1].split()[0]


def test_ratios_are_told_of_what_both_have_run() -> None:
    rows = [
        told("ours, resident", 8, 0.1),
        told("ours, resident, compiled", 8, 0.05),
        told("ours, resident, compiled", 4, 0.11),
        told("ours, 0 blocks stay, 2 slots", 8, 0.125, peak_gb=5.8),
        told("ours, 0 blocks stay, 4 slots", 8, 0.1),
        told("ours, 0 blocks stay, 2 slots, compiled", 8, 0.1),
        told("whole job within 8 GiB", 8, 4.0),
        told("whole job within all GiB", 8, 3.8),
        {"name": "diffusers, sequential", "side": 1024, "rows": 1, "absent": "no time was left"},
    ]
    lines = ratios(rows)
    assert value(lines, "streamed over resident, batch 8, eager") == "0.80"
    assert value(lines, "streamed over resident, batch 8, compiled") == "0.50"
    assert value(lines, "job within 8 GiB over all") == "0.95"
    assert value(lines, "seconds of a step and row, resident") == "0.110"
    assert value(lines, "GB at the peak, nothing stays") == "5.800"
    assert not any("sequential" in line for line in lines)
    assert ratios(rows[-1:]) == []
    assert "not run: no time was left" in row(rows[-1])
    assert "100.00 ms a row" in row(rows[0])


def test_what_one_process_measured_is_compared_first() -> None:
    here = [told("ours, resident", 8, 0.1, part="offload"),
            told("ours, 0 blocks stay, 2 slots", 8, 0.125, part="offload")]  # fmt: skip
    elsewhere = told("ours, resident", 8, 0.08, part="resident")
    what = "streamed over resident, batch 8, eager"
    assert value(ratios([*here, elsewhere]), what) == "0.80"
    assert value(ratios([here[1], elsewhere]), what) == "0.64"


def test_what_falls_costs_its_own_row() -> None:
    kept: list[int] = []
    bench = Bench("tiny", CPU, 600, "part", lambda rows: kept.append(len(rows)))

    def falls(*_: object) -> AbstractContextManager[Step]:
        raise AttributeError("a peer of another version")

    bench.measure("peer", falls, 64, 1)
    bench.attempt("ours", 64, 1, lambda: {"seconds": 1.0, "seconds_a_row": 1.0})
    assert [one.get("absent") for one in bench.rows] == [
        "AttributeError: a peer of another version", None,
    ]  # fmt: skip
    assert kept == [1, 2]  # written each time


def test_a_part_that_has_no_time_left_names_what_it_leaves_out() -> None:
    bench = Bench("tiny", CPU, seconds=-1)
    bench.measure("ours, resident", lambda *_: None, 256, 1)  # type: ignore[arg-type, return-value]
    assert bench.rows[0]["absent"] == "no time was left"


def test_blocks_pass_through_on_a_cpu_without_another_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "WARM", 1)
    monkeypatch.setattr(benchmark, "TIMED", 1)
    monkeypatch.setitem(benchmark.SIDES, "tiny", (64, 64))
    run_part("offload", bench := Bench("tiny", CPU, 600))
    assert not [one for one in bench.rows if "absent" in one]
    rows = {(one["name"], one["rows"]): one for one in bench.rows}
    assert rows["ours, resident", 1]["copied_gb"] == 0
    assert rows["ours, 0 blocks stay, 2 slots", 1]["copied_gb"] > 0
    assert {one["deviation"] for one in bench.rows if one["rows"] == 1} == {0.0}
