"""Targets from the command line, in processes of their own, with the shipped demo model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs import verify
from tests.batch.doubles import write_manifest
from tests.batch.test_verify import flip
from tests.jobs import command

ROOT = Path(__file__).parents[2]
ROWS = 24


def write_job(folder: Path, name: str, **values: Any) -> Path:
    prompts = [f"a {'small' if i % 2 else 'large'} red circle" for i in range(ROWS)]
    columns = {"prompt": prompts, "key": [f"k{i}" for i in range(ROWS)]}
    manifest = write_manifest(folder / "m.parquet", columns)
    told = {
        "manifest": str(manifest),
        "output": str(folder / name),
        "rows_per_shard": 6,
        "target": {"kind": "path", "segments": 4},
        "check_share": 0.2,
        "engine": {"torch_dtype": "float32", "micro_batch": 2, "device": "cpu"},
        "sampling": {"num_inference_steps": 16},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told | values))
    return path


def start(config: Path, *words: str) -> subprocess.Popen[str]:
    return command.start("distill", config, *words)


def finished(config: Path, *words: str) -> tuple[int, str, str]:
    return command.ended(start(config, *words))


def contents(output: Path) -> dict[str, bytes]:
    """All that must not depend on who made it, or how often somebody fell."""
    files = [*(output / "data").iterdir(), *(output / "text").iterdir()]
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


def test_a_dry_run_says_what_it_would_cost(tmp_path: Path) -> None:
    code, out, _ = finished(write_job(tmp_path, "out"), "--dry-run")
    assert code == 0
    assert "predicted: " in out
    assert "MiB a row" in out
    assert "0 of 4 shards are finished" in out
    assert not (tmp_path / "out").exists()


def test_a_wrong_target_is_refused(tmp_path: Path) -> None:
    config = write_job(tmp_path, "out", target={"kind": "path", "segmnets": 4})
    code, _, err = finished(config)
    assert code == 2
    assert "did you mean 'segments'" in err


@pytest.mark.ray
def test_a_killed_run_that_goes_on_makes_the_same_bytes_and_is_verified(tmp_path: Path) -> None:
    config = write_job(tmp_path, "whole", workers=1)
    code, out, err = finished(config)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["done"] == ROWS
    wanted = contents(tmp_path / "whole")
    config = write_job(tmp_path, "killed", workers=2)
    process = start(config)
    deadline = time.monotonic() + 250
    while not list((tmp_path / "killed" / "data").glob("*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, out, err = finished(config)
    assert code == 0, err
    assert contents(tmp_path / "killed") == wanted
    told = json.loads((tmp_path / "killed" / "manifest.json").read_text())
    assert told["rows"] == ROWS
    verified = subprocess.run(
        [sys.executable, "-m", "jobs.verify", str(tmp_path / "killed"), "--sample", "8"],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    assert (tmp_path / "killed" / "verify.html").is_file()
    report = json.loads((tmp_path / "killed" / "verify.json").read_text())
    assert report["passed"] is True
    flip(next((tmp_path / "killed" / "data").iterdir()), 300)
    broken = CliRunner().invoke(verify.app, [str(tmp_path / "killed"), "--sums-only"])
    assert broken.exit_code == 1
    report = json.loads((tmp_path / "killed" / "verify.json").read_text())
    assert report["passed"] is False
    assert "sum is " in report["findings"][0]["faults"][0]
