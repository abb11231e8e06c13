import os
import signal
import threading
from pathlib import Path

import pytest

from batch.actor import ShardWorker
from batch.errors import OutputError, RunFailed
from batch.pool import Pool
from batch.run import checked_plan
from batch.workers import Resources, Share
from schemas.jobs import GenerateJob
from tests.batch.doubles import PainterFactory, PainterStage, column, job, write_manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ONE = Resources(gpus=0, cpus=1)


def workers(count: int) -> Share:
    return Share(count, count, ONE)


def ready(tmp_path: Path, prompts: list[str]) -> GenerateJob:
    keys = [f"k{i}" for i in range(len(prompts))]
    return job(tmp_path, write_manifest(tmp_path / "m.parquet", {"prompt": prompts, "key": keys}))


def test_all_workers_share_the_shards_of_one_file(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["sleep 0.05"] * 32)
    pool = Pool(PainterFactory(asked, ()), workers(2), retries=3, stop=lambda: False)
    reports = [r for r in pool.run(checked_plan(asked)[1]) if r is not None]
    assert sorted(column(tmp_path / "out", "key")) == sorted(f"k{i}" for i in range(32))
    assert len(reports) == 8
    assert pool.lost == 0


def test_a_row_that_kills_its_worker_is_found_and_its_neighbours_live(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox", "owl", "kill", "bee", "ant", "cat"])
    pool = Pool(PainterFactory(asked, ()), workers(1), retries=3, stop=lambda: False)
    reports = [r for r in pool.run(checked_plan(asked)[1]) if r is not None]
    assert sum(r.done for r in reports) == 5
    assert column(tmp_path / "out", "key", "rejected") == ["k2"]
    assert column(tmp_path / "out", "error", "rejected") == ["WorkerDied"]
    assert pool.lost == 3  # twice with its shard, once alone


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
    with pytest.raises(RunFailed, match="die while they load the engine"):
        list(pool.run(checked_plan(asked)[1]))


def test_the_users_fault_in_a_worker_stops_the_run_with_its_own_words(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox"])
    PainterFactory(asked, ())(tmp_path / "crumb").setup()
    pool = Pool(OtherFactory(asked, ()), workers(1), retries=3, stop=lambda: False)
    with pytest.raises(OutputError, match="made by other weights: painter changed"):
        list(pool.run(checked_plan(asked)[1]))


def test_a_pool_that_is_told_to_stop_stops_and_leaves_whole_shards(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["sleep 0.1"] * 40)
    told = threading.Event()
    pool = Pool(PainterFactory(asked, ()), workers(1), retries=3, stop=told.is_set)
    for report in pool.run(checked_plan(asked)[1]):
        if report is not None:
            told.set()
    assert 0 < len(column(tmp_path / "out", "key")) < 40
