"""Whole runs whose manifest, pictures and output are in a bucket."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.bucket import Bucket
from batch.errors import ManifestError, OutputError, StorageError
from batch.run import checked_plan, run
from batch.storage import Storage
from batch.targets.verdict import Verdict
from batch.targets.verification import Dataset, verify_rows, verify_teacher
from schemas.jobs import GenerateJob
from tests.batch.doubles import data_bytes, job, write_manifest
from tests.batch.s3 import CREDENTIALS, Server, serving
from tests.batch.test_media import png
from tests.batch.test_run import go, start
from tests.batch.test_run_targets import contents
from tests.batch.test_run_targets import job as targets_job
from tests.conftest import ShapesEngine

ROWS = 24


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def columns(prompts: list[str]) -> dict[str, list[str | None]]:
    pictures: list[str | None] = [None] * len(prompts)
    pictures[1], pictures[2] = "red.png", "missing.png"
    keys: list[str | None] = [f"k{i}" for i in range(len(prompts))]
    return {"prompt": [*prompts], "key": keys, "input_image": pictures}


def in_bucket(server: Server, tmp_path: Path, name: str, prompts: list[str]) -> GenerateJob:
    bucket = Bucket(server.uri(name))
    bucket.put("m/red.png", png())
    manifest = write_manifest(tmp_path / name / "a.parquet", columns(prompts))
    bucket.put("m/a.parquet", manifest.read_bytes())
    values = {"manifest": server.uri(f"{name}/m"), "output": server.uri(f"{name}/out")}
    return job(tmp_path, manifest, workers=2).model_copy(update=values)


def on_disk(tmp_path: Path, prompts: list[str]) -> dict[str, bytes]:
    """What the same manifest comes out as on a disk."""
    write_manifest(tmp_path / "m" / "a.parquet", columns(prompts))
    (tmp_path / "m" / "red.png").write_bytes(png())
    go(job(tmp_path, tmp_path / "m", workers=2), start)
    return data_bytes(tmp_path / "out")


def in_store(output: str) -> dict[str, bytes]:
    bucket = Bucket(output)
    return {
        f"{folder}/{name}": bucket.read(f"{folder}/{name}")
        for folder in ("data", "rejected")
        for name in bucket.names(folder)
    }


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_storage_that_fails_now_and_then_loses_nothing(server: Server, tmp_path: Path) -> None:
    prompts = [f"fox {i}" for i in range(ROWS)]
    asked = in_bucket(server, tmp_path, "faulty", prompts)
    server.fail(share=0.05, methods=["PUT", "GET", "HEAD"], status=503, code="SlowDown", lost=True)
    report, complete = go(asked, start)
    failed = server.served().get("failed", 0)
    server.fail()
    assert failed > 0
    assert complete
    assert (report.done, report.rejected, report.skipped) == (ROWS - 1, 1, 0)
    assert in_store(asked.output) == on_disk(tmp_path, prompts)
    assert {"README.md", "index.html"} <= set(Bucket(server.uri("faulty")).names("out"))
    assert Bucket(asked.output).names("_run/tmp") == []
    everything = Bucket(asked.output)
    for key in everything._keys(everything.prefix):
        told = everything.read(key.removeprefix(everything.prefix))
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() not in told, key
    again, _ = go(asked, start)
    assert again.skipped == ROWS


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_credentials_that_expire_end_the_run_and_a_rerun_goes_on(
    server: Server, tmp_path: Path
) -> None:
    prompts = [f"sleep 0.0{1 + i % 9}" for i in range(ROWS)]
    asked = in_bucket(server, tmp_path, "expiring", prompts)
    data = Bucket(asked.output)

    def expire() -> None:
        deadline = time.monotonic() + 60
        while not data.names("data") and time.monotonic() < deadline:
            time.sleep(0.02)
        server.fail(share=1.0, methods=["PUT"], status=400, code="ExpiredToken")

    expiring = threading.Thread(target=expire)
    expiring.start()
    try:
        with pytest.raises(StorageError, match="cannot be written: ExpiredToken"):
            go(asked, start)
    finally:
        expiring.join()
        server.fail()
    there = in_store(asked.output)
    assert 0 < len(there) < ROWS // 4
    report, complete = go(asked, start)
    assert complete
    assert report.skipped > 0
    assert in_store(asked.output) == on_disk(tmp_path, prompts)
    assert there.items() <= in_store(asked.output).items()


def test_a_bucket_that_is_not_there_is_refused_before_anything(
    server: Server, tmp_path: Path
) -> None:
    asked = in_bucket(server, tmp_path, "refused", ["fox"] * 4)
    for name, error in (("output", OutputError), ("manifest", ManifestError)):
        wrong = server.uri("x").replace("//bucket", "//no-such-bucket")
        with pytest.raises(error, match="no-such-bucket"):
            go(asked.model_copy(update={name: wrong}), start)
    with pytest.raises(OutputError, match="outputs are local folders or s3:// addresses"):
        go(asked.model_copy(update={"output": "gs://bucket/out?anonymous=true"}), start)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_targets_go_into_a_bucket_are_the_same_there_and_are_verified(
    server: Server, tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    here = targets_job(tmp_path, "out", workers=1)
    run(here, *checked_plan(here), start)
    there = here.model_copy(update={"output": server.uri("targets/out")})
    report, complete = run(there, *checked_plan(there), start)
    assert complete
    assert report.done == report.rows
    bucket = Bucket(there.output)
    for name, data in contents(tmp_path / "out").items():
        assert bucket.read(name) == data, name
    verdict = Verdict(there.output)
    found = Dataset(Storage(there.output))
    sample = verify_rows(found, verdict, 8)
    verify_teacher(found, shapes_engine(), sample, verdict, folder=str(tmp_path), replays=1)
    told = {finding.name: finding.passed for finding in verdict.findings}
    assert told["rows by themselves"]
    assert told["texts encoded again"]
    assert not [why for why in verdict.skipped if "text" in why]
