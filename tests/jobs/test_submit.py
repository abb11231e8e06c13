"""Ray's front door: a head with a token, `ray job submit`, and jobs handed in once."""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from ray.job_submission import JobStatus

from batch.errors import JobError, ManifestError
from jobs import cli, submit
from jobs.submit import Submission, one_line, submission_of
from schemas.base import SchemaError
from schemas.ingest import IngestJob
from schemas.jobs import DistillJob
from schemas.training import TrainJob
from tests.batch.doubles import column, data_bytes, job, write_manifest
from tests.batch.targets.made import Targets
from tests.jobs.head import ROOT, Head, running_head
from tests.jobs.test_generate import write_job


@dataclass
class Known:
    """What a server says of one job."""

    submission_id: str
    status: JobStatus


@dataclass
class Server:
    """A job server that starts nothing."""

    jobs: dict[str, JobStatus] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    faster: str = ""  # somebody who submits this id just before us

    def list_jobs(self) -> list[Known]:
        return [Known(name, status) for name, status in self.jobs.items()]

    def submit_job(self, **asked: Any) -> str:
        name = asked["submission_id"]
        if self.faster == name:
            self.jobs[name] = JobStatus.RUNNING
            raise RuntimeError(f"Job with submission_id {name} already exists.")
        if self.faster:
            raise RuntimeError("Request failed with status code 500:\nno room")
        self.asked.append(asked)
        self.jobs[name] = JobStatus.PENDING
        return str(name)


def test_a_job_is_handed_in_once_and_again_only_after_it_failed() -> None:
    submission, server = Submission("a", "run it", seen=True), Server()
    assert submission.hand_in(server) == ("a", JobStatus.PENDING, True)
    for state in (JobStatus.PENDING, JobStatus.RUNNING, JobStatus.SUCCEEDED):
        server.jobs["a"] = state
        assert submission.hand_in(server) == ("a", state, False)
    server.jobs["a"] = JobStatus.STOPPED
    assert submission.hand_in(server) == ("a-2", JobStatus.PENDING, True)
    assert submission.hand_in(server) == ("a-2", JobStatus.PENDING, False)
    server.jobs["a-2"] = JobStatus.FAILED
    assert submission.hand_in(server) == ("a-3", JobStatus.PENDING, True)
    environment = {"working_dir": ".", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    assert [one["runtime_env"] for one in server.asked] == [environment] * 3


def test_a_job_whose_manifest_nobody_here_sees_may_have_new_rows() -> None:
    server = Server({"a": JobStatus.SUCCEEDED})
    assert Submission("a", "", seen=False).hand_in(server) == ("a-2", JobStatus.PENDING, True)


def test_who_is_second_finds_the_job_there() -> None:
    told = Submission("a", "", seen=True).hand_in(Server(faster="a"))
    assert told == ("a", JobStatus.RUNNING, False)
    with pytest.raises(JobError, match="status code 500: no room"):
        Submission("a", "", seen=True).hand_in(Server(faster="b"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.touch()
    return path


def test_the_id_is_that_of_the_job_and_of_the_manifest_s_files(
    config: Path, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "m" / "a.parquet", {"prompt": ["fox"]}).parent
    asked = job(tmp_path, manifest).model_copy(update={"output": "/data/Foxes & Owls"})

    def name(asked: Any = asked, tick: str = "") -> str:
        return submission_of(asked, config, ["a=b c"], tick).name

    first = name()
    assert first.startswith("fluxmill-foxes-owls-")
    assert name() == first
    assert name(tick="2026-11-24T00:00") == f"{first}-2026-11-24T00-00"
    assert name(asked.model_copy(update={"workers": 7})) == first
    assert name(asked.model_copy(update={"image_format": "webp"})) != first
    assert name(asked.model_copy(update={"output": "/other/Foxes & Owls"})) != first
    write_manifest(tmp_path / "m" / "b.parquet", {"prompt": ["owl"]})
    assert name() != first
    words = submission_of(asked, config, ["a=b c"], "").entrypoint
    assert words == "python -m jobs.generate --config job.yaml --set 'a=b c'"


def test_targets_are_handed_in_like_pictures(config: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m" / "a.parquet", {"caption": ["fox"], "image": [b"x"]})
    told = {"manifest": str(manifest), "output": "/data/t", "target": {"kind": "cache"}}
    config.write_text(yaml.safe_dump(told))
    asked = cli.load_job(config, ["target.moments=true"])
    assert isinstance(asked, DistillJob)
    words = submission_of(asked, config, ["target.moments=true"], "").entrypoint
    assert words == "python -m jobs.distill --config job.yaml --set target.moments=true"


def test_training_material_is_handed_in_like_prompts(config: Path, tmp_path: Path) -> None:
    told = {"output": "/data/t", "source": {"kind": "folder", "path": "/data/in"}}
    config.write_text(yaml.safe_dump(told))
    asked = cli.load_job(config, [])
    assert isinstance(asked, IngestJob)
    one = submission_of(asked, config, [], "")
    assert one.entrypoint == "python -m jobs.ingest --config job.yaml"
    other = submission_of(cli.load_job(config, ["source.path=/data/else"]), config, [], "")
    assert other.name != one.name
    outside = cli.load_job(config, ["source.path=../else"])
    with pytest.raises(SchemaError, match=r"source\.path \.\./else: lies outside"):
        submission_of(outside, config, [], "")


def test_training_is_handed_in_once(config: Path) -> None:
    told = {"output_path": "/data/lora", "model": "flux-shapes", "dataset": "/data/rows"}
    config.write_text(yaml.safe_dump(told))
    asked = cli.load_job(config, ["lora_rank=4"])
    assert isinstance(asked, TrainJob)
    one = submission_of(asked, config, ["lora_rank=4"], "")
    assert one.entrypoint == "python -m jobs.train --config job.yaml --set lora_rank=4"
    assert one.name.startswith("fluxmill-lora-")
    assert one.seen
    assert submission_of(cli.load_job(config, []), config, [], "").name != one.name
    longer = {"max_steps": 7}
    other = {"lora_layout": "kohya"}, {"save_dtype": "float32"}, {"sample_prompts": ("a",)}
    for values in (longer, *other, {"model": "elsewhere"}):
        changed = submission_of(asked.model_copy(update=values), config, [], "")
        assert changed.name != one.name
    same = asked.model_copy(update={"workers": 1, "checkpoint_steps": 5, "max_failures": 9})
    assert submission_of(same, config, [], "").name == one.name
    with pytest.raises(SchemaError, match=r"dataset \.\./rows: lies outside"):
        submission_of(cli.load_job(config, ["dataset=../rows"]), config, [], "")
    with pytest.raises(SchemaError, match="output lora: is relative"):
        submission_of(cli.load_job(config, ["output_path=lora"]), config, [], "")


def test_what_cannot_run_from_a_copy_of_the_folder_is_refused(config: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", {"prompt": ["fox"]})
    good = job(tmp_path, manifest)
    travels = good.model_copy(update={"manifest": "m.parquet"})
    assert submission_of(travels, config, [], "").seen
    with pytest.raises(SchemaError, match=r"output out: is relative"):
        submission_of(good.model_copy(update={"output": "out"}), config, [], "")
    with pytest.raises(SchemaError, match=r"manifest \.\./m\.parquet: lies outside"):
        submission_of(good.model_copy(update={"manifest": "../m.parquet"}), config, [], "")
    with pytest.raises(SchemaError, match=r"job\.yaml: lies outside"):
        submission_of(good, tmp_path.parent / "job.yaml", [], "")
    with pytest.raises(ManifestError, match="no such file"):
        submission_of(good.model_copy(update={"manifest": f"{tmp_path}/n"}), config, [], "")
    elsewhere = good.model_copy(update={"manifest": "/on/the/cluster/m.parquet"})
    assert not submission_of(elsewhere, config, [], "").seen
    assert submission_of(elsewhere, config, [], "tick").seen


def test_an_error_of_many_lines_is_told_in_one() -> None:
    assert one_line(RuntimeError("a\n  b")) == "a b"
    assert submit.ENVIRONMENT["RAY_JOB_STOP_WAIT_TIME_S"] == "60"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as running:
        yield running


@pytest.fixture
def travelling(tmp_path: Path) -> Iterator[Path]:
    """A job file inside the folder that travels."""
    path = ROOT / f".job-{os.getpid()}.yaml"
    path.write_text(write_job(tmp_path).read_text())
    yield path
    path.unlink()


def last(text: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return told


def readme_words(config: Path) -> list[str]:
    """The README's `ray job submit`, with this job file."""
    found = re.search(r"^ray job submit (?:.*\\\n)*.*$", (ROOT / "README.md").read_text(), re.M)
    assert found
    return shlex.split(found[0].replace("\\\n", " ").replace("job.yaml", config.name))


@pytest.mark.ray
def test_ray_job_submit_makes_a_dataset(head: Head, travelling: Path, tmp_path: Path) -> None:
    done = head.run(*readme_words(travelling))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert '"rows": 6, "done": 6, "rejected": 0' in done.stdout
    assert column(tmp_path / "out", "key") == [f"k{i}" for i in range(6)]


@pytest.mark.ray
def test_ray_job_submit_makes_targets(head: Head, travelling: Path, tmp_path: Path) -> None:
    told = yaml.safe_load(travelling.read_text())
    told |= {"target": {"kind": "pair"}, "check_share": 0.0}
    travelling.write_text(yaml.safe_dump(told))
    words = f"ray job submit --working-dir . -- python -m jobs.distill --config {travelling.name}"
    done = head.run(*words.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"rows": 6, "done": 6, "rejected": 0' in done.stdout
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"] == 6


@pytest.mark.ray
def test_ray_job_submit_trains(
    head: Head, travelling: Path, tmp_path: Path, targets: Targets
) -> None:
    told = {
        "output_path": str(tmp_path / "lora"), "model": "flux-shapes", "torch_dtype": "float32",
        "dataset": str(targets("cache")), "max_steps": 2, "lora_rank": 2, "workers": 1,
    }  # fmt: skip
    travelling.write_text(yaml.safe_dump(told))
    words = f"ray job submit --working-dir . -- python -m jobs.train --config {travelling.name}"
    done = head.run(*words.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"step": 2, "steps": 2, "resumed": 0' in done.stdout
    assert (tmp_path / "lora" / "lora.safetensors").is_file()


@pytest.mark.ray
def test_an_output_that_would_lie_in_ray_s_copy_is_refused(head: Head, travelling: Path) -> None:
    words = f"ray job submit --working-dir . -- python -m jobs.generate --config {travelling.name}"
    done = head.run(*words.split(), "--set", "output=out")
    assert done.returncode != 0
    assert "output out: lies in Ray's copy of the submitted folder" in done.stdout + done.stderr


@pytest.mark.ray
def test_a_wrong_token_and_a_silent_server_are_told_in_one_line(
    head: Head, travelling: Path
) -> None:
    words = ["python", "-m", "jobs.submit", "--config", travelling.name]
    for changes in (
        {"RAY_AUTH_TOKEN": "f" * 64},
        {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"},
    ):
        done = head.run(*words, **changes)
        assert done.returncode == 2, done.stderr
        assert "no job server: " in done.stderr
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


@pytest.mark.ray
def test_a_stopped_job_keeps_what_is_finished_and_the_next_attempt_ends_it(
    head: Head, travelling: Path, tmp_path: Path
) -> None:
    travelling.write_text(write_job(tmp_path, rows=48).read_text())
    words = ["python", "-m", "jobs.submit", "--config", travelling.name]
    done = head.run(*words)
    assert done.returncode == 0, done.stderr
    name = last(done.stdout)["submission_id"]
    assert last(done.stdout) == {"submission_id": name, "state": "PENDING", "submitted": True}
    assert last(head.run(*words).stdout)["submitted"] is False  # it waits or runs

    data = tmp_path / "out" / "data"
    deadline = time.monotonic() + 100
    while len(list(data.glob("*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    stopped = head.run("ray", "job", "stop", name)
    seconds = time.monotonic() - began
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    print(f"stopped in {seconds:.1f} s")
    (report,) = (tmp_path / "out" / "_run" / "reports").iterdir()
    assert json.loads(report.read_text())["state"] == "stopped"
    made = {file.name: file.read_bytes() for file in data.iterdir()}
    assert 2 <= len(made) < 24
    assert all(pq.read_table(file).num_rows == 2 for file in data.iterdir())

    done = head.run(*words, "--wait")
    assert done.returncode == 0, done.stderr
    assert last(done.stdout) == {
        "submission_id": f"{name}-2",
        "state": "SUCCEEDED",
        "submitted": True,
    }
    assert "48 of 48 rows" in done.stderr
    after = {file.name: file.read_bytes() for file in data.iterdir()}
    assert made.items() <= after.items()
    assert column(tmp_path / "out", "key") == [f"k{i}" for i in range(48)]
    before = data_bytes(tmp_path / "out")
    assert last(head.run(*words).stdout) == {
        "submission_id": f"{name}-2",
        "state": "SUCCEEDED",
        "submitted": False,
    }
    assert data_bytes(tmp_path / "out") == before


@pytest.mark.ray
def test_waiting_ends_as_the_job_does(head: Head, travelling: Path, tmp_path: Path) -> None:
    words = ["python", "-m", "jobs.submit", "--wait", "--config", travelling.name]
    done = head.run(*words, "--set", "engine.model=/nowhere/on/the/cluster")
    assert done.returncode == 2, done.stdout + done.stderr
    assert last(done.stdout)["state"] == "FAILED"
    assert "/nowhere/on/the/cluster" in done.stderr
    assert not (tmp_path / "out").exists()
