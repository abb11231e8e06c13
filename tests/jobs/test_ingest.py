"""Training material from the command line, in processes of their own."""

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

from jobs.cli import load
from schemas.ingest import IngestJob
from tests.batch.ingest.material import folder, ingest, picture, rows
from tests.jobs import command

ROOT = Path(__file__).parents[2]
ROWS = 160


def write_job(place: Path, name: str, **values: Any) -> Path:
    told = {
        "source": {"kind": "folder", "path": str(place / "in")},
        "output": str(place / name),
        "rows_per_shard": 8,
    }
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told | values))
    return path


def start(config: Path, *words: str) -> subprocess.Popen[str]:
    return command.start("ingest", config, *words)


def finished(config: Path, *words: str) -> tuple[int, str, str]:
    return command.ended(start(config, *words))


def contents(output: Path) -> dict[str, bytes]:
    files = [*(output / "data").iterdir(), *(output / "rejected").iterdir()]
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


def material(place: Path) -> None:
    files: dict[str, bytes | str] = {"broken.png": b"x", "broken.txt": "broken"}
    for i in range(ROWS):
        files |= {f"{i:03d}.png": picture(400, 300, seed=i), f"{i:03d}.txt": f"picture {i}"}
    folder(place / "in", files)


def test_a_dry_run_tells_what_there_is_and_starts_nothing(tmp_path: Path) -> None:
    folder(tmp_path / "in", {"a.png": picture(), "a.txt": "a"})
    code, out, _ = finished(write_job(tmp_path, "out"), "--dry-run")
    assert code == 0
    assert "1 pictures and captions in the source, 1 of them not yet planned" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": {"kind": "folder", "path": "nowhere"}}, "there is no such folder"),
        ({"found": {"carried": ["x"]}}, "found: is filled in from the source"),
        ({"engine": {}}, "engine: unknown name"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    folder(tmp_path / "in", {"a.png": picture(), "a.txt": "a"})
    code, _, err = finished(write_job(tmp_path, "out", **values))
    assert code == 2
    assert words in err


@pytest.mark.ray
def test_a_killed_run_that_goes_on_makes_the_same_bytes(tmp_path: Path) -> None:
    material(tmp_path)
    ingest(load(IngestJob, write_job(tmp_path, "whole"), []))
    config = write_job(tmp_path, "killed", workers=2)
    process = start(config)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "data").glob("*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, out, err = finished(config)
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    assert (told["done"], told["rejected"]) == (ROWS, 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(rows(tmp_path / "killed")) == ROWS
    assert "160 captioned pictures" in (tmp_path / "killed" / "README.md").read_text()
    for words in (["jobs.verify"], ["jobs.inspect", "--json"]):
        looked = subprocess.run(
            [sys.executable, "-m", words[0], str(tmp_path / "killed"), *words[1:]],
            cwd=ROOT, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert looked.returncode == 0, looked.stderr
    assert json.loads(looked.stdout)["sizes"] == {"400×300": ROWS}
