"""Training from the command line, in processes of its own, with the shipped demo model."""

import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
import yaml

from batch.storage import Storage
from batch.training.checkpoint import Checkpoint, Checkpoints
from batch.training.look import checked
from batch.training.metrics import read_metrics
from batch.training.recipe import resolved
from batch.training.texts import CACHE_VARIABLE
from jobs import train
from schemas.training import TrainJob
from tests.batch.targets.made import Targets
from tests.jobs import command

PARTS = ("trainable", "optimizer", "average")


def write_job(folder: Path, name: str, dataset: Path, **values: Any) -> Path:
    told: dict[str, Any] = {
        "output_path": str(folder / name),
        "model": "flux-shapes",
        "dataset": str(dataset),
        "torch_dtype": "float32",
        "device": "cpu",
        "workers": "local",
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "lora_rank": 4,
        "learning_rate": 1e-3,
        "checkpoint_steps": 2,
        "ema": 0.9,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told | values))
    return path


def start(config: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        CACHE_VARIABLE: str(config.parent / "texts"),
        "OMP_NUM_THREADS": "1",
    }
    return command.start("train", config, *words, environment=environment)


def finished(config: Path, *words: str) -> tuple[int, str, str]:
    return command.ended(start(config, *words), timeout=400)


def state(folder: Path) -> Checkpoint:
    found = Checkpoints(Storage(str(folder))).latest()
    assert found is not None
    return found


def same_bits(one: Checkpoint, other: Checkpoint) -> bool:
    parts = [(getattr(one.state, part), getattr(other.state, part)) for part in PARTS]
    return one.step == other.step and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in parts
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A job's handlers and log are those of a process of its own."""
    logger = logging.getLogger()
    handlers, level = [*logger.handlers], logger.level
    signals = [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in signals:
        signal.signal(number, handler)
    logger.handlers[:], logger.level = handlers, level


def test_a_dry_run_says_what_it_would_do_and_leaves_nothing(
    tmp_path: Path, targets: Targets
) -> None:
    code, out, err = finished(write_job(tmp_path, "out", targets("cache")), "--dry-run")
    assert code == 0, err
    assert "steps: 6, of 2 micro-batches of 2 samples" in out
    assert "24 samples; 32x64: 3 rows, 64x64: 5 rows" in out
    assert "trainable: 83968 parameters" in out
    assert "double_blocks.*.img_attn.qkv (rank 4, alpha 4): 4096 in 2 layers" in out
    assert "memory: optimizer 671744" in out
    assert "0 of 6 steps are done" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"learning_rat": 1}, "learning_rat: unknown name; did you mean 'learning_rate'?"),
        ({"task": "jump"}, "holds cache, of which task jump cannot learn; it takes pair, path"),
        ({"batch_size": 4}, "buckets with fewer than 4 rows: 32x64 has 3"),
        ({"extra_inputs": "noise_scale"}, "has no column noise_scale"),
        ({"lora_target_modules": "qkw"}, "'qkw' matches no linear layer"),
        ({"fp8_models": "t5"}, "fp8_models t5: is no model of this job"),
        ({"task": "direct_distill"}, "has no num_inference_steps, which direct_distill"),
        ({"optimizer": {"kind": "torch.optim.Nothing"}}, "there is no Nothing in torch.optim"),
    ],
)
def test_a_wrong_job_is_refused_before_it_begins(
    values: dict[str, Any],
    told: str,
    tmp_path: Path,
    targets: Targets,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_job(tmp_path, "out", targets("cache"), **values)
    with pytest.raises(typer.Exit) as ended:
        train.main(config)
    assert ended.value.exit_code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_not_as_it_was_written_ends_a_run_that_has_begun_as_broken(
    tmp_path: Path, targets: Targets, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(seed: int) -> list[int]:
        job = resolved(TrainJob.parse(yaml.safe_load(config(targets("pair"), seed).read_text())))
        return [slot.row for slot in checked(job).stream.at(0).slots]

    def config(folder: Path, seed: int) -> Path:
        return write_job(tmp_path, "out", folder, seed=seed)

    seed = next(seed for seed in range(20) if 0 not in rows(seed))  # the look draws others
    folder = Path(shutil.copytree(targets("pair"), tmp_path / "changed"))
    file = min((folder / "data").iterdir())
    table = pq.read_table(file)
    place = table.schema.get_field_index("noise_hash")
    hashes = [bytes(8), *table.column(place).to_pylist()[1:]]
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(hashes, field.type)), file)
    with pytest.raises(typer.Exit) as ended:
        train.main(config(folder, seed))
    assert ended.value.exit_code == 1
    assert "NoiseError: " in (told := capsys.readouterr().err)
    assert f"{file.name} row 0: noise of seed" in told
    assert (tmp_path / "out" / "_run" / "job.json").exists()


def test_killed_and_stopped_runs_go_on_to_the_same_bits(tmp_path: Path, targets: Targets) -> None:
    values = {"max_steps": 30, "checkpoint_steps": 3}
    code, out, err = finished(write_job(tmp_path, "whole", targets("pair"), **values))
    assert code == 0, err
    last = json.loads(out.splitlines()[-1])
    assert last == last | {"step": 30, "steps": 30, "resumed": 0}
    config = write_job(tmp_path, "fell", targets("pair"), **values)
    for how in (signal.SIGKILL, signal.SIGTERM):
        process = start(config)
        done = tmp_path / "fell" / "_run" / "checkpoints"
        first = max(Checkpoints(Storage(str(tmp_path / "fell"))).steps(), default=0) + 3
        wait_for(done / f"step-{first:08d}" / "COMPLETE", process)
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 75}[how], err
    assert json.loads(out.splitlines()[-1])["resumed"] > 0
    code, out, err = finished(config)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["resumed"] > 0
    assert same_bits(state(tmp_path / "fell"), state(tmp_path / "whole"))
    steps = [line["step"] for line in read_metrics(Storage(str(tmp_path / "fell")))]
    assert steps == list(range(1, 31))
    code, out, _ = finished(config)  # there is nothing left to do
    assert code == 0
    assert json.loads(out.splitlines()[-1])["resumed"] == 30


def test_another_recipe_is_refused_naming_the_field_and_a_longer_run_is_not(
    tmp_path: Path, targets: Targets
) -> None:
    assert finished(write_job(tmp_path, "out", targets("cache")))[0] == 0
    other = write_job(tmp_path, "out", targets("cache"), learning_rate=1e-4)
    code, _, err = finished(other)
    assert code == 2
    assert "learning_rate was 0.001 and is 0.0001" in err
    longer = write_job(tmp_path, "out", targets("cache"), max_steps=9)
    code, out, err = finished(longer)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1]) | {"resumed": 6, "step": 9} == json.loads(
        out.splitlines()[-1]
    )
    whole = write_job(tmp_path, "whole", targets("cache"), max_steps=9)
    assert finished(whole)[0] == 0
    assert same_bits(state(tmp_path / "out"), state(tmp_path / "whole"))


@pytest.mark.ray
def test_ranks_end_with_the_bits_of_one_process_whatever_befalls_them(
    tmp_path: Path, targets: Targets
) -> None:
    values = {"max_steps": 24, "checkpoint_steps": 2, "gradient_accumulation_steps": 2}
    assert finished(write_job(tmp_path, "one", targets("velocity"), task="kd", **values))[0] == 0
    config = write_job(tmp_path, "two", targets("velocity"), task="kd", workers=2, **values)
    folder = tmp_path / "two"
    process = start(config)
    wait_for(folder / "_run" / "checkpoints" / "step-00000004" / "COMPLETE", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    stopped = json.loads(out.splitlines()[-1])["step"]
    assert 4 <= stopped < 24
    assert state(folder).step == stopped

    code, out, err = finished(config)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["resumed"] == stopped
    assert same_bits(state(folder), state(tmp_path / "one"))
    assert (folder / "lora.safetensors").is_file()
    assert (folder / "training.html").is_file()
    assert list((folder / "_run" / "ray").iterdir()) == []
