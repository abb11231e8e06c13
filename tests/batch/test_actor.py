import dataclasses
import pickle
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batch import actor
from batch.actor import ShardWorker
from batch.encoders import Encoders
from batch.errors import MachineFault, OutputError
from batch.manifest import Row
from batch.output import Output
from batch.parts import Parts
from batch.report import ShardReport
from batch.retry import retry_of
from batch.run import checked_plan
from batch.shards import Shard
from batch.stages import generate
from batch.wishes import Wish
from flux_engine.request import GenerationRequest, Outcome
from tests.batch.doubles import SIDE, Painter, PainterStage, column, data_bytes, job, write_manifest


def worker_and_shards(
    tmp_path: Path, prompts: list[str], **values: object
) -> tuple[ShardWorker, list[Shard]]:
    manifest = write_manifest(
        tmp_path / "m.parquet",
        {
            "prompt": prompts,
            "key": [f"k{i}" for i in range(len(prompts))],
            "licence": ["CC0"] * len(prompts),
        },
    )
    asked = job(tmp_path, manifest, passthrough=["licence"], **values)
    worker = ShardWorker(asked, PainterStage(asked, (str(tmp_path),)))
    worker.output.claim(asked.recipe())
    worker.setup()
    return worker, checked_plan(asked)[1]


def test_a_shard_becomes_a_file_in_the_order_of_its_rows(tmp_path: Path) -> None:
    worker, shards = worker_and_shards(tmp_path, ["fox", "nan", "owl", "bee", "ant"])
    reports = [worker(shard) for shard in shards]
    assert [(r.done, r.rejected) for r in reports] == [(3, 1), (1, 0)]
    assert column(tmp_path / "out", "key") == ["k0", "k2", "k3", "k4"]
    assert column(tmp_path / "out", "licence") == ["CC0"] * 4
    assert column(tmp_path / "out", "key", "rejected") == ["k1"]


def test_a_finished_shard_is_counted_and_not_made_again(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan"])
    first = worker(shard)
    before = data_bytes(tmp_path / "out")
    again = worker(shard)
    assert (again.done, again.rejected, again.state) == (first.done, first.rejected, "there")
    assert data_bytes(tmp_path / "out") == before


def test_rows_are_counted_until_the_report_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "owl"])
    publish, counted = actor.publish, []

    def watched(*words: Any) -> Any:
        counted.append(worker.pulse().finished)
        return publish(*words)

    monkeypatch.setattr(actor, "publish", watched)
    assert worker(shard).done == 2
    assert counted == [2]
    assert worker.pulse().finished == 0


def test_a_shard_of_bad_rows_alone_is_finished_too(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["nan", "nan"])
    report = worker(shard)
    assert (report.done, report.rejected) == (0, 2)
    (file,) = (tmp_path / "out" / "data").iterdir()
    assert pq.read_metadata(file).num_rows == 0


def test_other_weights_are_refused_before_a_row_is_made(tmp_path: Path) -> None:
    worker, _ = worker_and_shards(tmp_path, ["fox"])

    class Other(PainterStage):
        weights = "2"

    with pytest.raises(OutputError, match="made by other weights"):
        ShardWorker(worker.job, Other(worker.job, ())).setup()


def test_a_worker_that_does_not_see_the_driver_s_output_is_refused(tmp_path: Path) -> None:
    worker, _ = worker_and_shards(tmp_path, ["fox"])
    elsewhere = worker.job.model_copy(update={"output": str(tmp_path / "own")})
    with pytest.raises(OutputError, match=f"is not seen on {socket.gethostname()}"):
        ShardWorker(elsewhere, PainterStage(elsewhere, ())).setup()
    assert not (tmp_path / "own").exists()


def test_a_tar_is_a_shard_as_well(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox"], format="webdataset")
    worker(shard)
    assert [f.suffix for f in (tmp_path / "out" / "data").iterdir()] == [".tar"]


def test_pieces_of_a_shard_are_kept_and_the_whole_is_made_of_them(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan", "owl", "bee"])
    assert worker(shard, rows=(2, 3)).state == "part"
    assert worker(shard, rows=(0,)).state == "part"
    assert not (tmp_path / "out" / "data").exists()
    painted = count_painted(worker)
    report = worker(shard)
    assert (report.state, report.done, report.rejected) == ("published", 3, 1)
    assert painted == ["nan"]
    worker.output = Output(str(tmp_path / "whole"), "parquet")
    worker(shard)
    assert data_bytes(tmp_path / "out") == data_bytes(tmp_path / "whole")
    assert not (tmp_path / "out" / "_run" / "parts" / shard.name).exists()


def count_painted(worker: ShardWorker) -> list[str]:
    """The prompts that the worker's engine is asked for from here on."""
    painted: list[str] = []
    assert isinstance(worker.stage, PainterStage)
    engine = worker.stage.engine
    assert isinstance(engine, Painter)
    paint = engine.paint

    def told(request: GenerationRequest) -> Outcome:
        painted.append(request.prompt)
        return paint(request)

    engine.paint = told  # type: ignore[method-assign]
    return painted


def test_parts_that_another_run_took_away_with_its_shard_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "owl", "bee"])
    late, _ = worker_and_shards(tmp_path, ["fox", "owl", "bee"])
    late(shard, rows=(0, 1))
    publish = actor.publish

    def after_the_other(*arguments: Any) -> Any:
        monkeypatch.setattr(actor, "publish", publish)
        assert worker(shard).state == "published"
        return publish(*arguments)

    monkeypatch.setattr(actor, "publish", after_the_other)
    report = late(shard)
    assert (report.state, report.done) == ("there", 3)


def test_a_refused_row_is_a_record_and_is_not_tried(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "kill", "owl"])
    report = worker(shard, {1: "WorkerDied: the process died while this row was tried alone"})
    assert (report.done, report.rejected) == (2, 1)
    assert column(tmp_path / "out", "error", "rejected") == ["WorkerDied"]
    (reason,) = column(tmp_path / "out", "reason", "rejected")
    assert reason == "the process died while this row was tried alone"


def test_a_worker_that_is_to_leave_keeps_what_it_has_and_begins_nothing(tmp_path: Path) -> None:
    worker, (shard, other) = worker_and_shards(tmp_path, ["sleep 0.1"] * 24, rows_per_shard=12)
    ended: list[ShardReport] = []
    working = threading.Thread(target=lambda: ended.append(worker(shard)))
    working.start()
    while not worker.pulse().stage:
        time.sleep(0.01)
    time.sleep(0.05)
    worker.leave()
    working.join()
    assert [report.state for report in ended] == ["part"]
    assert worker(other).state == "part"
    kept = Parts(worker.output.storage, shard.name)
    assert 4 <= len(kept) < 12
    assert len(Parts(worker.output.storage, other.name)) == 0


def test_what_was_finished_before_memory_gave_out_is_kept(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "owl", "hog", "bee"])
    with pytest.raises(MachineFault, match="MemoryError"):
        worker(shard)
    assert len(Parts(worker.output.storage, shard.name)) == 2


def test_two_shards_are_in_hand_at_once_and_one_thread_alone_has_the_card(tmp_path: Path) -> None:
    worker, shards = worker_and_shards(tmp_path, ["sleep 0.01"] * 16)
    threads: set[str] = set()
    painted = count_painted(worker)
    at = worker.watch.at

    def told(stage: str, shard: str, wishes: Sequence[Wish]) -> None:
        threads.add(threading.current_thread().name)
        at(stage, shard, wishes)

    worker.watch.at = told  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as hands:
        reports = list(hands.map(worker, shards))
    assert {report.state for report in reports} == {"published"}
    assert len(painted) == 16
    assert len(threads) == 1
    pulse = worker.pulse()
    assert (pulse.stage, pulse.finished) == ("", 0)
    assert pulse.busy >= 0.16
    assert pulse.slowest >= 0.04


def test_a_retried_shard_takes_the_rejects_over(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan", "owl", "raise"])
    worker(shard)
    again = retry_of(shard, shard.name, [(1, 0, "NumbersBroke"), (3, 0, "RowRaised")])
    assert again is not None
    assert isinstance(worker.stage, PainterStage)
    worker.stage.engine = Mended()
    report = worker(again)
    assert (report.done, report.rejected) == (2, 0)
    assert sorted(column(tmp_path / "out", "key")) == ["k0", "k1", "k2", "k3"]
    assert not list((tmp_path / "out" / "rejected").iterdir())


class Mended(Painter):
    """Paints everything."""

    def paint(self, request: GenerationRequest) -> Outcome:
        return super().paint(dataclasses.replace(request, prompt="fox"))


def test_memory_that_gives_out_names_the_rows_that_were_worked_on(tmp_path: Path) -> None:
    worker, shards = worker_and_shards(
        tmp_path, ["fox"] * 8 + ["hog"] + ["owl"] * 7, rows_per_shard=16
    )
    with pytest.raises(MachineFault) as caught:
        worker(shards[0])
    assert caught.value.rows == (8, 9, 10, 11)
    assert pickle.loads(pickle.dumps(caught.value)).rows == (8, 9, 10, 11)  # as it travels


def test_encoding_that_is_slower_than_the_card_does_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = threading.Event()
    encode = generate.to_bytes

    def slow(*picture: Any) -> bytes:
        assert painted.wait(60)  # nothing is encoded before the card is done with the whole shard
        return encode(*picture)

    prompts = [f"fox {i}" for i in range(3 * actor.UNWRITTEN)]
    worker, (shard,) = worker_and_shards(tmp_path, prompts, rows_per_shard=len(prompts))
    worker.stage.encoders = Encoders(2, waiting_bytes=5 * SIDE * SIDE * 3 * 4)  # type: ignore[attr-defined]
    monkeypatch.setattr(generate, "to_bytes", slow)
    monkeypatch.setattr(worker.watch, "idle", lambda _: painted.set())
    assert worker(shard).done == len(prompts)
    assert column(tmp_path / "out", "key") == [f"k{i}" for i in range(len(prompts))]


def test_what_no_row_is_to_blame_for_is_no_slow_micro_batch(tmp_path: Path) -> None:
    watchman = actor.Watchman(None)
    wish = Wish(0, Row(7, "k7", {}, None, None), 0)
    watchman.at("denoise", "shard", [wish])
    watchman.at("deviation", "shard", [])
    time.sleep(0.05)
    pulse = watchman.pulse()
    assert (pulse.stage, pulse.rows) == ("deviation", 0)
    assert pulse.seconds >= 0.05
    watchman.at("decode", "shard", [wish])
    assert watchman.pulse().slowest < 0.05
    time.sleep(0.05)
    watchman.idle(0.1)
    assert watchman.pulse().slowest >= 0.05
