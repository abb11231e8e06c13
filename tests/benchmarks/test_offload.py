import subprocess
import sys

import torch

from benchmarks.offload import Bench
from benchmarks.offload_table import ratios, row

HEAVY = ("ray", "pydantic", "pyarrow", "typer", "modelscope", "peft", "diffusers")


def test_it_is_imported_on_a_machine_that_has_little_more_than_torch() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY)
    code = f"import sys; {blocked}; import benchmarks.offload"
    subprocess.run([sys.executable, "-c", code], check=True)


def told(name: str, rows: int, seconds: float) -> dict[str, object]:
    return {"name": name, "side": 1024, "rows": rows, "seconds": seconds * rows,
            "seconds_a_row": seconds}  # fmt: skip


def test_ratios_are_told_of_what_both_have_run() -> None:
    rows = [
        told("ours, resident", 8, 0.1),
        told("ours, 0 blocks stay, 2 slots", 8, 0.125),
        told("ours, 0 blocks stay, 4 slots", 8, 0.1),
        {"name": "diffusers, sequential", "side": 1024, "rows": 1, "absent": "no time was left"},
    ]
    lines = ratios(rows)
    assert any("streamed over resident, batch 8" in x and "1.00 (goal 0.97)" in x for x in lines)
    assert not any("sequential" in line for line in lines)
    assert ratios(rows[-1:]) == []
    assert "not run: no time was left" in row(rows[-1])
    assert "100.00 ms a row" in row(rows[0])


def test_a_part_that_has_no_time_left_names_what_it_leaves_out() -> None:
    bench = Bench("tiny", torch.device("cpu"), seconds=-1)
    bench.measure("ours, resident", lambda *_: None, 256, 1)  # type: ignore[arg-type, return-value]
    assert bench.rows[0]["absent"] == "no time was left"
