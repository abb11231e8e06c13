import os
import signal
import threading
from pathlib import Path

import pytest
import ray

from batch.actor import ShardWorker
from batch.errors import JobError, OutputError, RunFailed
from batch.pool import Pool, Resources, cluster_share
from batch.run import checked_plan
from schemas.jobs import GenerateJob
from tests.batch.doubles import PainterFactory, PainterStage, column, job, write_manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ONE = Resources(gpus=0, cpus=1)


def ready(tmp_path: Path, prompts: list[str]) -> GenerateJob:
    keys = [f"k{i}" for i in range(len(prompts))]
    return job(tmp_path, write_manifest(tmp_path / "m.parquet", {"prompt": prompts, "key": keys}))


def test_all_workers_share_the_shards_of_one_file(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["sleep 0.05"] * 32)
    pool = Pool(PainterFactory(asked, ()), 2, ONE, retries=3, stop=lambda: False)
    reports = [r for r in pool.run(checked_plan(asked)[1]) if r is not None]
    assert sorted(column(tmp_path / "out", "key")) == sorted(f"k{i}" for i in range(32))
    assert len(reports) == 8
    assert pool.lost == 0


def test_a_row_that_kills_its_worker_is_found_and_its_neighbours_live(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox", "owl", "kill", "bee", "ant", "cat"])
    pool = Pool(PainterFactory(asked, ()), 1, ONE, retries=3, stop=lambda: False)
    reports = [r for r in pool.run(checked_plan(asked)[1]) if r is not None]
    assert sum(r.done for r in reports) == 5
    assert column(tmp_path / "out", "key", "rejected") == ["k2"]
    assert column(tmp_path / "out", "error", "rejected") == ["WorkerDied"]
    assert pool.lost == 3  # twice with its shard, once alone


def test_a_shard_that_no_row_is_to_blame_for_stops_the_run_after_retries(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["raise", "raise"])
    pool = Pool(PainterFactory(asked, ()), 1, ONE, retries=2, stop=lambda: False)
    with pytest.raises(RunFailed, match=r"failed 3 times, last with: .*cannot paint this"):
        list(pool.run(checked_plan(asked)[1]))


class DiesLoading(PainterStage):
    def setup(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class OtherWeights(PainterStage):
    weights = "2"


class Factory(PainterFactory):
    stage: type[PainterStage] = PainterStage

    def __call__(self) -> ShardWorker:
        return ShardWorker(self.job, self.stage(self.job, self.roots))


class DyingFactory(Factory):
    stage = DiesLoading


class OtherFactory(Factory):
    stage = OtherWeights


def test_workers_that_die_while_loading_stop_the_run(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox"])
    pool = Pool(DyingFactory(asked, ()), 1, ONE, retries=1, stop=lambda: False)
    with pytest.raises(RunFailed, match="die while they load the engine"):
        list(pool.run(checked_plan(asked)[1]))


def test_the_users_fault_in_a_worker_stops_the_run_with_its_own_words(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox"])
    PainterFactory(asked, ())().setup()
    pool = Pool(OtherFactory(asked, ()), 1, ONE, retries=3, stop=lambda: False)
    with pytest.raises(OutputError, match="made by other weights: painter changed"):
        list(pool.run(checked_plan(asked)[1]))


def test_a_pool_that_is_told_to_stop_stops_and_leaves_whole_shards(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["sleep 0.1"] * 40)
    told = threading.Event()
    pool = Pool(PainterFactory(asked, ()), 1, ONE, retries=3, stop=told.is_set)
    for report in pool.run(checked_plan(asked)[1]):
        if report is not None:
            told.set()
    assert 0 < len(column(tmp_path / "out", "key")) < 40


def test_the_cluster_is_shared_out_among_the_workers() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    assert cluster_share("auto", "auto") == (1, Resources(gpus=0, cpus=cpus))
    assert cluster_share(2, "auto") == (2, Resources(gpus=0, cpus=cpus // 2))
    assert cluster_share((1, 3), "cpu") == (3, Resources(gpus=0, cpus=cpus // 3))
    with pytest.raises(JobError, match="workers: 99 asked for"):
        cluster_share(99, "auto")
    with pytest.raises(JobError, match="device is cuda and the cluster has no GPU"):
        cluster_share("auto", "cuda")


def test_where_there_are_gpus_each_worker_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 32.0, "GPU": 8.0})
    assert cluster_share("auto", "auto") == (8, Resources(gpus=1, cpus=1))
    assert cluster_share((2, 4), "cuda") == (4, Resources(gpus=1, cpus=1))
    assert cluster_share("auto", "cpu") == (1, Resources(gpus=0, cpus=32))
    with pytest.raises(JobError, match="9 asked for, and the cluster has 8 GPUs"):
        cluster_share(9, "auto")
