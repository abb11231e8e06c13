import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from batch.actor import ShardWorker
from batch.errors import ManifestError, OutputError, RunFailed, StorageDown
from batch.report import RunReport
from batch.run import Stop, checked_plan, run
from batch.storage import Storage
from benchmarks.chaos import workers_of
from schemas.jobs import GenerateJob
from tests.batch.doubles import PainterFactory, column, data_bytes, job, write_manifest
from tests.batch.test_media import png

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

PROMPTS = ["fox", "owl", "nan", "bee", "ant", "raise", "cat", "dog", "cow"]


def never() -> bool:
    return False


def go(
    job: GenerateJob, start: Callable[[], Stop], *, retry_rejected: bool = False
) -> tuple[RunReport, bool]:
    """The job, painted."""
    plan = checked_plan(job)
    return run(job, *plan, start, PainterFactory, retry_rejected=retry_rejected)


def start() -> Callable[[], bool]:
    """Ray is there already, and nobody says stop."""
    return never


def asked(tmp_path: Path, prompts: list[str] = PROMPTS, **values: object) -> GenerateJob:
    keys = [f"k{i}" for i in range(len(prompts))]
    manifest = write_manifest(tmp_path / "m" / "a.parquet", {"prompt": prompts, "key": keys})
    return job(tmp_path, manifest.parent, workers=2, **values)


def test_a_manifest_becomes_a_dataset_that_opens_as_it_is(tmp_path: Path) -> None:
    report, complete = go(asked(tmp_path), start)
    assert complete
    assert (report.rows, report.done, report.rejected, report.skipped) == (9, 7, 2, 0)
    dataset = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(dataset["prompt"]) == sorted(set(PROMPTS) - {"nan", "raise"})
    assert dataset[0]["image"].size == (16, 16)
    assert sorted(column(tmp_path / "out", "error", "rejected")) == ["NumbersBroke", "RowRaised"]
    assert {"README.md", "index.html", "data", "rejected", "_run"} <= set(
        os.listdir(tmp_path / "out")
    )
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<figure ") == 7
    assert "cannot paint this" in page


def test_a_rerun_of_a_finished_job_does_nothing_and_says_the_same(tmp_path: Path) -> None:
    go(asked(tmp_path), start)
    written = (tmp_path / "out" / "index.html").stat().st_mtime_ns
    before = data_bytes(tmp_path / "out")

    def idle() -> Callable[[], bool]:
        raise AssertionError("nothing is to be started")

    report, complete = go(asked(tmp_path), idle)
    assert complete
    assert (report.rows, report.done, report.rejected, report.skipped) == (9, 7, 2, 9)
    assert data_bytes(tmp_path / "out") == before
    assert (tmp_path / "out" / "index.html").stat().st_mtime_ns == written
    assert len(list((tmp_path / "out" / "_run" / "reports").iterdir())) == 1


def test_a_file_that_was_added_is_all_that_is_worked_on(tmp_path: Path) -> None:
    go(asked(tmp_path), start)
    before = data_bytes(tmp_path / "out")
    write_manifest(tmp_path / "m" / "b.parquet", {"prompt": ["hen"], "key": ["new"]})
    report, complete = go(asked(tmp_path), start)
    assert complete
    assert (report.rows, report.skipped, len(report.shards)) == (10, 9, 1)
    after = data_bytes(tmp_path / "out")
    assert {k: after[k] for k in before} == before


def test_another_recipe_and_a_changed_file_are_refused(tmp_path: Path) -> None:
    go(asked(tmp_path), start)
    with pytest.raises(OutputError, match="image_format was 'png' and is 'webp'"):
        go(asked(tmp_path, image_format="webp"), start)
    with pytest.raises(OutputError, match=r"a\.parquet: changed since"):
        go(asked(tmp_path, ["hen"]), start)


def test_a_wrong_manifest_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    wrong = job(tmp_path, write_manifest(tmp_path / "m.parquet", {"promt": ["fox"]}))
    with pytest.raises(ManifestError, match="did you mean 'prompt'"):
        go(wrong, start)
    assert not (tmp_path / "out").exists()


def test_rejected_rows_are_tried_again_when_asked_and_counted_once(tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path / "m" / "a.parquet",
        {"prompt": ["fox", "owl", "nan"], "input_image": [None, "late.png", None]},
    )
    asked = job(tmp_path, manifest.parent)
    report, _ = go(asked, start)
    assert (report.done, report.rejected) == (1, 2)
    (tmp_path / "m" / "late.png").write_bytes(png((16, 16)))
    report, _ = go(asked, start)
    assert (report.done, report.rejected, report.skipped) == (1, 2, 3)
    report, complete = go(asked, start, retry_rejected=True)
    assert complete
    assert (report.rows, report.done, report.rejected, report.skipped) == (3, 2, 1, 1)
    assert column(tmp_path / "out", "error", "rejected") == ["NumbersBroke"]
    assert sorted(column(tmp_path / "out", "prompt")) == ["fox", "owl"]
    report, _ = go(asked, start)
    assert (report.done, report.rejected, report.skipped) == (2, 1, 3)


def test_too_many_rejected_rows_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="were rejected, and max_rejected is 2; rejected/ says why"):
        go(asked(tmp_path, ["fox", *["nan"] * 3] * 8, max_rejected=2), start)
    (report,) = (tmp_path / "out" / "_run" / "reports").iterdir()
    assert json.loads(report.read_text())["state"] == "failed"


def test_two_runs_at_once_end_with_one_complete_dataset(tmp_path: Path) -> None:
    prompts = ["sleep 0.02"] * 40
    ended: list[tuple[RunReport, bool]] = []
    jobs = [asked(tmp_path, prompts).model_copy(update={"workers": 1}) for _ in range(2)]
    runs = [threading.Thread(target=lambda j=j: ended.append(go(j, start))) for j in jobs]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert [(report.done, complete) for report, complete in ended] == [(40, True)] * 2
    assert sorted(column(tmp_path / "out", "key")) == sorted(f"k{i}" for i in range(40))
    assert len(list((tmp_path / "out" / "data").iterdir())) == 10


def test_what_a_killed_process_left_lying_is_taken_away(tmp_path: Path) -> None:
    go(asked(tmp_path), start)
    out = tmp_path / "out"
    finished = next((out / "data").iterdir()).stem
    for shard in (finished, "of-another-run"):
        (out / "_run" / "parts" / shard).mkdir(parents=True)
        (out / "_run" / "parts" / shard / "a.arrow").write_bytes(b"x")
    go(asked(tmp_path), start)
    assert os.listdir(out / "_run" / "parts") == ["of-another-run"]


class DyingFactory(PainterFactory):
    """Makes workers of which the first that has published data dies before it shows the rejects."""

    def __call__(self, crumb: Path) -> ShardWorker:
        replace = Storage.replace

        def dies(storage: Storage, name: str, data: bytes, *, durable: bool = True) -> None:
            mark = Path(storage.path("_run/died"))
            if name.startswith("rejected/") and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            replace(storage, name, data, durable=durable)

        Storage.replace = dies  # type: ignore[method-assign]  # in the worker's own process
        return super().__call__(crumb)


def test_a_worker_that_dies_before_it_shows_its_rejects_loses_none(tmp_path: Path) -> None:
    job = asked(tmp_path)
    report, complete = run(job, *checked_plan(job), start, DyingFactory)
    assert (tmp_path / "out" / "_run" / "died").exists()
    assert complete
    assert (report.done, report.rejected, report.lost_workers) == (7, 2, 1)
    assert sorted(column(tmp_path / "out", "key", "rejected")) == ["k2", "k5"]
    assert "cannot paint this" in (tmp_path / "out" / "index.html").read_text()


def test_a_report_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace = Storage.replace

    def fails(self: Storage, name: str, data: bytes, *, durable: bool = True) -> None:
        if "reports" in name:
            raise StorageDown("no answer")
        replace(self, name, data, durable=durable)

    monkeypatch.setattr(Storage, "replace", fails)
    _, complete = go(asked(tmp_path), start)
    assert complete
    assert "report not written" in caplog.messages


def test_a_stopped_run_does_not_stay_for_the_page(tmp_path: Path) -> None:
    _, complete = go(asked(tmp_path), lambda: lambda: True)
    assert not complete
    assert not (tmp_path / "out" / "index.html").exists()
    _, complete = go(asked(tmp_path), start)
    assert complete
    assert (tmp_path / "out" / "index.html").exists()


def test_killed_workers_leave_the_same_bytes_as_an_undisturbed_run(tmp_path: Path) -> None:
    prompts = [f"sleep 0.0{i % 5 + 1}" for i in range(60)]
    quiet = asked(tmp_path, prompts, output=str(tmp_path / "quiet"))
    go(quiet, start)
    killed: list[int] = []
    over = threading.Event()

    def kill_twice() -> None:
        """A worker dies when the first shard is there, and its successor after the next one."""
        while len(killed) < 2 and not over.wait(0.02):
            there = len(list((tmp_path / "out" / "data").glob("*")))
            if there > 2 * len(killed) and (pids := workers_of(os.getpid())):
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

    opened: Counter[str] = Counter()

    def read() -> None:
        """Every file that is to be seen under data/ is whole, at any moment."""
        while not over.wait(0.01):
            for file in (tmp_path / "out" / "data").glob("*"):
                opened[file.name] += pq.read_table(file).num_rows

    beside = [threading.Thread(target=kill_twice), threading.Thread(target=read)]
    for thread in beside:
        thread.start()
    report, complete = go(asked(tmp_path, prompts), start)
    over.set()
    for thread in beside:
        thread.join()
    assert complete
    assert len(opened) >= 10
    assert all(opened.values())
    assert len(killed) == 2
    assert (report.done, report.lost_workers) == (60, 2)
    assert data_bytes(tmp_path / "out") == data_bytes(tmp_path / "quiet")


def test_what_differs_between_runs_is_in_the_reports_alone(tmp_path: Path) -> None:
    go(asked(tmp_path), start)
    (report,) = (tmp_path / "out" / "_run" / "reports").iterdir()
    told = json.loads(report.read_text())
    assert told["state"] == "finished"
    assert {"seconds", "host"} <= set(told["shards"][0])
    first = data_bytes(tmp_path / "out")
    again = asked(tmp_path, output=str(tmp_path / "again"))
    go(again, start)
    assert data_bytes(tmp_path / "again") == first
