import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.cli import (
    FieldFormatter,
    Stopped,
    StopSignal,
    check_place,
    load,
    load_job,
    set_value,
    start_ray,
)
from schemas.base import SchemaError
from schemas.ingest import IngestJob
from schemas.jobs import DistillJob, GenerateJob

JOB = """
manifest: m.parquet
output: out
workers: [1, 2]
engine:
  model:
  - path: a
  - path: b
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def test_changes_are_laid_over_the_file_at_any_depth(config: Path) -> None:
    job = load(
        GenerateJob,
        config,
        ["sampling.sigma_shift=1.5", "engine.model.1.path=c", "workers=auto", "passthrough=[x, y]"],
    )
    assert job.sampling.sigma_shift == 1.5
    assert [entry.path for entry in job.engine.model if not isinstance(entry, str)] == ["a", "c"]
    assert job.workers == "auto"
    assert job.passthrough == ("x", "y")


def test_a_change_of_an_unknown_name_is_judged_by_the_schema(config: Path) -> None:
    with pytest.raises(SchemaError, match=r"sampling\.stesp: unknown name"):
        load(GenerateJob, config, ["sampling.stesp=4"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("sampling", "write it as a.b=value"),
        ("=3", "write it as a.b=value"),
        ("engine.model.7.path=x", "nothing at '7'"),
        ("manifest.deep.er=1", "nothing at 'deep'"),
        ("output=[1", "the value is not YAML"),
    ],
)
def test_a_change_that_leads_nowhere_says_so(config: Path, change: str, why: str) -> None:
    with pytest.raises(SchemaError, match=why):
        load(GenerateJob, config, [change])


def test_a_value_is_read_as_yaml() -> None:
    values: dict[str, Any] = {}
    for change in ("a=1", "b=true", "c=null", "d=[1, x]", "e=x=y"):
        set_value(values, change)
    assert values == {"a": 1, "b": True, "c": None, "d": [1, "x"], "e": "x=y"}


@pytest.mark.parametrize(("text", "why"), [("[1, 2]", "is not a mapping"), ("a: [", "is not YAML")])
def test_a_file_that_is_no_job_is_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SchemaError, match=rf"job\.yaml: {why}"):
        load(GenerateJob, path, [])
    with pytest.raises(SchemaError, match=r"none\.yaml: cannot be read"):
        load(GenerateJob, tmp_path / "none.yaml", [])


@pytest.mark.parametrize(
    ("output", "fine"), [("out", False), ("/data/out", True), ("s3://b/out", True)]
)
def test_an_output_in_ray_s_copy_of_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, fine: bool
) -> None:
    check_place(output)
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with nullcontext() if fine else pytest.raises(SchemaError, match="lies in Ray's copy"):
        check_place(output)


def test_a_logged_event_carries_its_fields() -> None:
    record = logging.makeLogRecord({"msg": "shard written", "levelname": "INFO", "shard": 42})
    assert (
        FieldFormatter("%(levelname)s %(message)s").format(record) == "INFO shard written shard=42"
    )


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
    yield StopSignal()
    for kind, handler in before.items():
        signal.signal(kind, handler)


def test_before_there_is_work_a_signal_ends_the_process_at_once(stop: StopSignal) -> None:
    with pytest.raises(Stopped, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_while_ray_starts_ends_the_process_like_any_other(
    stop: StopSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_ray_does(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        with suppress(Exception):
            os.kill(os.getpid(), asked)

    monkeypatch.setattr(ray, "init", as_ray_does)
    for asked in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(Stopped, match=asked.name):
            start_ray(stop)


def test_while_there_is_work_the_first_signal_asks_and_the_second_ends(stop: StopSignal) -> None:
    assert not stop()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop()
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_file_with_a_target_is_a_distillation_job(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("manifest: m.parquet\noutput: out\n")
    assert isinstance(load_job(config, []), GenerateJob)
    assert isinstance(load_job(config, ["target.kind=pair"]), DistillJob)
    source = tmp_path / "ingest.yaml"
    source.write_text("output: o\nsource: {kind: folder, path: in}\n")
    assert isinstance(load_job(source, []), IngestJob)
    config.write_text("manifest: m.parquet\noutput: out\ntarget: {kind: logits}\n")
    with pytest.raises(SchemaError, match="target"):
        load_job(config, [])
    with pytest.raises(SchemaError, match="cannot be read"):
        load_job(tmp_path / "absent.yaml", [])
