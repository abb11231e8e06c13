"""The main job from its command line, in processes of its own, with the shipped demo model."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from batch.output import Output
from jobs import cli
from jobs.work import resolved
from schemas.jobs import GenerateJob
from tests.batch.doubles import column, data_bytes, write_manifest
from tests.jobs import command

PROMPTS = [
    f"a small {colour} circle at the top on a black background" for colour in ("red", "blue")
]


def write_job(tmp_path: Path, rows: int = 6, **values: Any) -> Path:
    prompts = [PROMPTS[i % 2] for i in range(rows)]
    keys = [f"k{i}" for i in range(rows)]
    manifest = write_manifest(tmp_path / "m.parquet", {"prompt": prompts, "key": keys})
    told = {
        "manifest": str(manifest),
        "output": str(tmp_path / "out"),
        "rows_per_shard": 2,
        "engine": {"torch_dtype": "float32", "micro_batch": 2},
        "sampling": {"num_inference_steps": 2},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(told | values))
    return path


def start(config: Path, *words: str) -> "subprocess.Popen[str]":
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    return command.start("generate", config, *words, environment=env)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("sampling.heigth=64", "sampling.heigth: unknown name; did you mean 'height'?"),
        ("manifest=/nowhere.parquet", "there is no such file or folder"),
        ("engine.model=flux-shape", "is neither a folder nor a bundled name (flux-shapes)"),
        ("passthrough=[licence]", "has no column 'licence'"),
    ],
)
def test_a_wrong_job_ends_with_2_and_starts_nothing(tmp_path: Path, change: str, why: str) -> None:
    code, out, err = command.ended(start(write_job(tmp_path), "--set", change))
    assert (code, out) == (2, "")
    assert why in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_resolved_job_and_the_plan_and_stops(tmp_path: Path) -> None:
    code, out, _ = command.ended(start(write_job(tmp_path), "--dry-run"))
    assert code == 0
    job, _, plan = out.partition("\n}\n")
    assert json.loads(job + "}")["sampling"]["height"] == 64  # the model folder's own default
    assert "3 shards, 6 rows, 6 pictures" in plan
    assert "64×64, 2 steps, flux schedule" in plan
    assert f"0 of 3 shards are finished in {tmp_path}/out" in plan
    assert not (tmp_path / "out").exists()


def test_a_dry_run_looks_at_the_output(tmp_path: Path) -> None:
    config = write_job(tmp_path)
    values = resolved(cli.load(GenerateJob, config, []))
    Output(values.output, values.format).claim(values.recipe())
    code, _, err = command.ended(start(config, "--dry-run", "--set", "image_format=webp"))
    assert code == 2
    assert "image_format was 'png' and is 'webp'" in err
    assert "Traceback" not in err


@pytest.mark.ray
def test_a_job_ends_with_one_line_of_facts_and_a_rerun_changes_nothing(tmp_path: Path) -> None:
    config = write_job(tmp_path)
    code, out, err = command.ended(start(config))
    assert code == 0, err
    assert json.loads(out.splitlines()[-1]) == {
        "rows": 6,
        "done": 6,
        "rejected": 0,
        "skipped": 0,
        "output": str(tmp_path / "out"),
    }
    assert "6 of 6 rows" in err
    before = data_bytes(tmp_path / "out")
    code, out, _ = command.ended(start(config))
    assert code == 0
    assert json.loads(out.splitlines()[-1])["skipped"] == 6
    assert data_bytes(tmp_path / "out") == before


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What 16 rows come out as when nobody disturbs the run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = command.ended(start(write_job(folder, rows=16)))
    assert code == 0, err
    return data_bytes(folder / "out")


@pytest.mark.ray
@pytest.mark.parametrize(("kill", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_stopped_driver_is_taken_up_where_it_was(
    tmp_path: Path, undisturbed: dict[str, bytes], kill: signal.Signals, code: int
) -> None:
    config = write_job(tmp_path, rows=16)
    process = start(config)
    data = tmp_path / "out" / "data"
    deadline = time.monotonic() + 200
    while not (data.is_dir() and any(data.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kill)
    assert command.ended(process)[0] == code
    made = len(list(data.iterdir()))
    assert 1 <= made < 8
    for file in data.iterdir():
        assert pq.read_metadata(file).num_rows == 2

    ended, out, err = command.ended(start(config))
    assert ended == 0, err
    assert json.loads(out.splitlines()[-1])["done"] == 16
    assert data_bytes(tmp_path / "out") == undisturbed
    assert column(tmp_path / "out", "key") == [f"k{i}" for i in range(16)]
