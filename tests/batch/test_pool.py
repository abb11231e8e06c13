import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from batch import pool as pool_module
from batch.actor import ShardWorker
from batch.crumb import crumb_path
from batch.errors import OutputError, RunFailed
from batch.output import Output
from batch.parts import Parts
from batch.pool import Pool
from batch.run import checked_plan
from batch.storage import Storage
from batch.workers import Resources, Share
from flux_engine.request import ONLOOKER, GenerationRequest, Outcome, Watch
from schemas.jobs import GenerateJob
from tests.batch.doubles import Painter, PainterFactory, PainterStage, column, job, write_manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ONE = Resources(gpus=0, cpus=1)


def workers(count: int) -> Share:
    return Share(count, count, ONE)


def ready(tmp_path: Path, prompts: list[str]) -> GenerateJob:
    keys = [f"k{i}" for i in range(len(prompts))]
    asked = job(tmp_path, write_manifest(tmp_path / "m.parquet", {"prompt": prompts, "key": keys}))
    Output(asked.output, asked.format).claim(asked.recipe())
    return asked


def test_all_workers_share_the_shards_of_one_file(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["sleep 0.05"] * 32)
    pool = Pool(PainterFactory(asked, ()), workers(2), retries=3, stop=lambda: False)
    reports = [r for r in pool.run(checked_plan(asked)[1]) if r is not None]
    assert len(pool._lanes) == 2
    assert not any(crumb_path(lane.name).exists() for lane in pool._lanes)
    assert sorted(column(tmp_path / "out", "key")) == sorted(f"k{i}" for i in range(32))
    assert len(reports) == 8
    assert pool.lost == 0


def test_rows_that_kill_hang_or_exhaust_memory_are_found_and_their_neighbours_live(
    tmp_path: Path,
) -> None:
    prompts = ["fox", "owl", "kill", "bee", "ant", "hog", "cat", "dog", "hen", "hang", "cow"]
    asked = ready(tmp_path, prompts)
    pool = Pool(
        PainterFactory(asked, ()),
        workers(2),
        retries=3,
        stop=lambda: False,
        row_timeout=2.0,
    )
    reports = [r for r in pool.run(checked_plan(asked)[1]) if r is not None]
    assert sum(r.done for r in reports) == 8
    out = tmp_path / "out"
    told = dict(zip(column(out, "key", "rejected"), column(out, "error", "rejected"), strict=True))
    assert told == {"k2": "WorkerDied", "k5": "MachineFault", "k9": "RowTimeout"}
    for words in column(out, "reason", "rejected"):
        assert "alone" in words
    # killed and hung: twice among others, once alone; less if a neighbour's end struck the row too
    assert 4 <= pool.lost <= 6


def test_a_worker_that_ray_ends_for_its_memory_is_a_worker_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = ray.get

    def as_the_memory_monitor_has_it(*asked: Any, **options: Any) -> Any:
        try:
            return get(*asked, **options)
        except RayActorError as error:
            raise OutOfMemoryError(str(error)) from None

    monkeypatch.setattr(ray, "get", as_the_memory_monitor_has_it)
    asked = ready(tmp_path, ["fox", "kill", "owl"])
    pool = Pool(PainterFactory(asked, ()), workers(1), retries=0, stop=lambda: False)
    assert sum(r.done for r in pool.run(checked_plan(asked)[1]) if r is not None) == 2
    (reason,) = column(tmp_path / "out", "reason", "rejected")
    assert reason == "its machine had no memory left, tried alone"


def test_a_small_manifest_keeps_all_workers_busy(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["sleep 0.2"] * 24).model_copy(update={"rows_per_shard": 24})
    shards = checked_plan(asked)[1]
    assert len(shards) == 1
    pool = Pool(PainterFactory(asked, ()), workers(2), retries=3, stop=lambda: False)
    busy = [sum(bool(lane.leases) for lane in pool._lanes) for _ in pool.run(shards)]
    assert max(busy) == 2
    assert sorted(column(tmp_path / "out", "key")) == sorted(f"k{i}" for i in range(24))
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1


def test_a_shard_that_no_row_is_to_blame_for_stops_the_run_after_retries(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["raise", "raise"])
    pool = Pool(PainterFactory(asked, ()), workers(1), retries=2, stop=lambda: False)
    with pytest.raises(RunFailed, match=r"failed 3 times, last with: .*cannot paint this"):
        list(pool.run(checked_plan(asked)[1]))


class DiesLoading(PainterStage):
    def setup(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class OtherWeights(PainterStage):
    weights = "2"


class Factory(PainterFactory):
    stage: type[PainterStage] = PainterStage

    def __call__(self, crumb: Path) -> ShardWorker:
        return ShardWorker(self.job, self.stage(self.job, self.roots), crumb)


class DyingFactory(Factory):
    stage = DiesLoading


class OtherFactory(Factory):
    stage = OtherWeights


def test_workers_that_die_while_loading_stop_the_run(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox"])
    pool = Pool(DyingFactory(asked, ()), workers(1), retries=1, stop=lambda: False)
    with pytest.raises(RunFailed, match="cannot load the engine, 5 times"):
        list(pool.run(checked_plan(asked)[1]))


class LoadsSometimes(PainterStage):
    """Fails to load until it was tried often enough: killed, or with an error of its machine."""

    def setup(self) -> None:
        tries = Path(f"{self.job.output}.tries")
        with tries.open("a") as file:
            file.write("x")
        match tries.stat().st_size:
            case 1 | 3 | 4 | 5 | 6 | 7:
                os.kill(os.getpid(), signal.SIGKILL)
            case 2:
                raise ConnectionError("no route to the weights")
        super().setup()


class SometimesFactory(Factory):
    stage = LoadsSometimes


def test_an_engine_that_has_been_loaded_before_is_not_blamed_for_kills(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox", "owl"])
    factory = SometimesFactory(asked, ())
    pool = Pool(factory, workers(1), retries=0, stop=lambda: False, proven=True)
    assert sum(r.done for r in pool.run(checked_plan(asked)[1]) if r is not None) == 2
    assert pool.lost == 6


def test_the_users_fault_in_a_worker_stops_the_run_with_its_own_words(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox"])
    PainterFactory(asked, ())(tmp_path / "crumb").setup()
    pool = Pool(OtherFactory(asked, ()), workers(1), retries=3, stop=lambda: False)
    with pytest.raises(OutputError, match="made by other weights: painter changed"):
        list(pool.run(checked_plan(asked)[1]))


def test_a_pool_that_is_told_to_stop_keeps_what_is_finished(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["sleep 0.1"] * 40).model_copy(update={"rows_per_shard": 20})
    shards = checked_plan(asked)[1]
    told = threading.Event()
    pool = Pool(PainterFactory(asked, ()), workers(1), retries=3, stop=told.is_set)
    began = 0.0
    for _ in pool.run(shards):
        if pool.underway >= 4 and not told.is_set():
            told.set()
            began = time.monotonic()
    drained = time.monotonic() - began
    storage = Storage(asked.output)
    kept = sum(len(Parts(storage, shard.name)) for shard in shards)
    whole = 20 * len(storage.names("data"))
    assert 4 <= kept + whole < 40
    assert kept % 4 == 0  # whole micro-batches
    print(f"drained in {drained:.2f} s, {kept + whole} of 40 rows kept")


class SlowStage(PainterStage):
    """Whose engine is never there."""

    def setup(self) -> None:
        time.sleep(600)


class SlowFactory(PainterFactory):
    def __call__(self, crumb: Path) -> ShardWorker:
        return ShardWorker(self.job, SlowStage(self.job, self.roots), crumb)


def test_an_engine_that_never_loads_is_told_of_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "LOAD_TIMEOUT_S", 1.0)
    monkeypatch.setattr(pool_module, "TOLD_S", 0.3)
    asked = ready(tmp_path, ["fox"])
    pool = Pool(SlowFactory(asked, ()), workers(1), retries=3, stop=lambda: False)
    with caplog.at_level("INFO"), pytest.raises(RunFailed, match="cannot load the engine, 5 times"):
        list(pool.run(checked_plan(asked)[1]))
    assert "workers wait for resources or load their engine" in caplog.messages


class Measures(Painter):
    """Takes longer than a row may, before it makes its first one, and says that no row does."""

    def each(
        self, requests: Sequence[GenerationRequest], *, watch: Watch = ONLOOKER
    ) -> Iterator[tuple[int, Outcome]]:
        watch.at("denoise", [0])
        watch.at("deviation", [])
        time.sleep(4)
        yield from super().each(requests, watch=watch)


class MeasuringStage(PainterStage):
    def setup(self) -> None:
        super().setup()
        self.engine = Measures()


class MeasuringFactory(Factory):
    stage = MeasuringStage


def test_rows_do_not_answer_for_what_their_worker_measures(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox", "owl"])
    make = MeasuringFactory(asked, ())
    pool = Pool(make, workers(1), retries=0, stop=lambda: False, row_timeout=1.5)
    reports = [r for r in pool.run(checked_plan(asked)[1]) if r is not None]
    assert (sum(r.done for r in reports), pool.lost) == (2, 0)
