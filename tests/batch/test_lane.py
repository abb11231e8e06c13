import gc
import uuid
from pathlib import Path

import pytest
import ray

from batch.backlog import Lease
from batch.crumb import crumb_path
from batch.lane import WorkerProcess, start_lane
from batch.run import checked_plan
from batch.workers import Resources
from tests.batch.doubles import PainterFactory, column
from tests.batch.test_pool import ready

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_a_lane_is_waited_for_until_it_is_loaded_and_then_for_its_leases(tmp_path: Path) -> None:
    asked = ready(tmp_path, ["fox", "nan"])
    (shard,) = checked_plan(asked)[1]
    lane = start_lane(PainterFactory(asked, ()), Resources(gpus=0, cpus=1))
    assert lane.refs() == [lane.loading]
    lane.node = ray.get(lane.loading)
    assert lane.node == ray.get_runtime_context().get_node_id()
    assert lane.refs() == []
    work = lane.actor.work.remote(shard, {}, None)
    lane.leases[work] = Lease(shard)
    lane.asked = lane.actor.pulse.remote()
    assert lane.refs() == [work, lane.asked]
    assert (ray.get(work).done, ray.get(lane.asked).stage) == (1, "")
    ray.kill(lane.actor)
    assert column(tmp_path / "out", "prompt") == ["fox"]


def test_what_a_worker_has_loaded_is_not_looked_at_for_garbage(tmp_path: Path) -> None:
    name = tmp_path.name + uuid.uuid4().hex
    process = WorkerProcess(PainterFactory(ready(tmp_path, ["fox"]), ()), name, threads=1)
    try:
        process.ready()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        crumb_path(name).unlink()
