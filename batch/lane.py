"""One worker's process on Ray, and what its driver knows of it."""

import gc
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from batch.actor import Refused, ShardWorker
from batch.backlog import Lease
from batch.crumb import crumb_path
from batch.report import Pulse, ShardReport
from batch.shards import Shard
from batch.workers import Resources

WORK, TALK = "work", "talk"  # threads of a worker: it can be asked while it works
LEASES = 2  # in one worker's hands: one is computed while the other is encoded and written

MakeWorker = Callable[[Path], ShardWorker]


class WorkerProcess:
    """A `ShardWorker` in a process of its own; `ready` loads its engine."""

    def __init__(self, make: MakeWorker, name: str, threads: int) -> None:
        import torch  # in the worker alone

        torch.set_num_threads(threads)
        self.worker = make(crumb_path(name))

    def ready(self) -> str:
        self.worker.setup()
        gc.freeze()  # what is loaded stays: a tenth of a row's CPU went into looking at it again
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def work(self, shard: Shard, refused: Refused, rows: tuple[int, ...] | None) -> ShardReport:
        return self.worker(shard, refused, rows)

    def pulse(self) -> Pulse:
        return self.worker.pulse()

    def leave(self) -> None:
        self.worker.leave()


@dataclass
class Lane:
    """One worker and what it has been asked; `node` is known when its engine is loaded."""

    name: str
    actor: ActorHandle[WorkerProcess]
    loading: Any
    alone: bool = False  # takes nothing but rows that are to be tried alone
    node: str | None = None
    begun: float = field(default_factory=time.monotonic)
    leases: dict[Any, Lease] = field(default_factory=dict)
    asked: Any = None  # for a pulse
    asked_at: float = 0.0
    pulse: Pulse | None = None
    hung: bool = False

    def refs(self) -> list[Any]:
        waits = [self.loading] if self.node is None else list(self.leases)
        return [*waits, self.asked] if self.asked is not None else waits


def start_lane(make: MakeWorker, resources: Resources, *, alone: bool = False) -> Lane:
    """A new worker, which begins to load its engine as soon as the cluster has room for it."""
    name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    options = {
        "num_gpus": resources.gpus,
        "num_cpus": resources.cpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {WORK: LEASES, TALK: 1},
    }
    actor = ray.remote(**options)(WorkerProcess).remote(make, name, resources.cpus)
    return Lane(name, actor, actor.ready.options(concurrency_group=WORK).remote(), alone)
