"""Ray actors, one to a GPU, kept busy; lost ones replaced. Scheduling and placement are Ray's."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from batch.actor import ShardWorker
from batch.errors import BatchError, JobError, RunFailed
from batch.report import ShardReport
from batch.shards import Shard
from flux_engine.errors import EngineError

logger = logging.getLogger(__name__)

LEASES = 2  # in flight a worker: it never waits for the driver
DEATHS_BEFORE_PROBING = 2
POLL_S = 0.5

MakeWorker = Callable[[], ShardWorker]


@dataclass(frozen=True)
class Resources:
    """What one worker holds of the cluster."""

    gpus: int
    cpus: int


class WorkerProcess:
    """A `ShardWorker` in a process of its own; `ready` loads its engine."""

    def __init__(self, make: MakeWorker, threads: int) -> None:
        import torch  # in the worker alone

        torch.set_num_threads(threads)
        self.worker = make()

    def ready(self) -> None:
        self.worker.setup()

    def work(self, shard: Shard, refused: dict[int, str]) -> ShardReport:
        return self.worker(shard, refused)

    def probe(self, shard: Shard, row: int) -> None:
        self.worker.probe(shard, row)


@dataclass
class Lane:
    """One worker and what it has been asked, oldest first; `None` asks it to load its engine."""

    actor: ActorHandle[WorkerProcess]
    leases: deque[tuple[Any, Shard | None]] = field(default_factory=deque)


class Pool:
    """Keeps `count` workers busy with shards until none is left, or `stop` says so."""

    def __init__(
        self,
        make: MakeWorker,
        count: int,
        resources: Resources,
        *,
        retries: int,
        stop: Callable[[], bool],
    ) -> None:
        self.make, self.count, self.resources = make, count, resources
        self.retries, self.stop = retries, stop
        self.lost = 0
        self._queue: deque[Shard] = deque()
        self._failures: Counter[str] = Counter()
        self._refused: dict[str, dict[int, str]] = {}
        self._lanes: list[Lane] = []
        self._deaths_while_loading = 0

    def run(self, shards: Iterable[Shard]) -> Iterator[ShardReport | None]:
        """A report for each shard as it is finished, and None whenever nothing happened."""
        self._queue.extend(shards)
        self._lanes = [self._lane() for _ in range(min(self.count, len(self._queue)))]
        try:
            while (self._queue or self._busy()) and not self.stop():
                self._lease()
                refs = [lane.leases[0][0] for lane in self._lanes if lane.leases]
                done, _ = ray.wait(refs, num_returns=1, timeout=POLL_S)
                if not done:
                    yield None
                for ref in done:
                    lane = next(x for x in self._lanes if x.leases and x.leases[0][0] == ref)
                    report = self._answer(lane)
                    if report is not None:
                        yield report
        finally:
            for lane in self._lanes:
                ray.kill(lane.actor)

    def _busy(self) -> bool:
        return any(shard for lane in self._lanes for _, shard in lane.leases)

    def _lane(self) -> Lane:
        options = {
            "num_gpus": self.resources.gpus,
            "num_cpus": self.resources.cpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        actor = ray.remote(WorkerProcess).options(**options).remote(self.make, self.resources.cpus)
        lane = Lane(actor)
        lane.leases.append((actor.ready.remote(), None))
        return lane

    def _lease(self) -> None:
        """Breadth first, so that the last shards are spread over all workers."""
        for depth in range(1, LEASES + 1):
            for lane in self._lanes:
                held = sum(shard is not None for _, shard in lane.leases)
                if self._queue and held < depth:
                    shard = self._queue.popleft()
                    refused = self._refused.get(shard.name, {})
                    lane.leases.append((lane.actor.work.remote(shard, refused), shard))

    def _answer(self, lane: Lane) -> ShardReport | None:
        ref, shard = lane.leases.popleft()
        try:
            report: ShardReport | None = ray.get(ref)
        except RayTaskError as error:
            self._failed(lane, shard, error)
            return None
        except RayActorError as error:
            self._died(lane, shard, error)
            return None
        self._deaths_while_loading = 0
        return report

    def _failed(self, lane: Lane, shard: Shard | None, error: RayTaskError) -> None:
        """The worker raised: our own or the user's fault stops the run, else try elsewhere."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if shard is None or isinstance(cause, EngineError | BatchError):
            raise cause
        logger.warning("shard failed", extra={"shard": shard.name, "why": repr(cause)})
        self._again(shard, cause)
        self._replace(lane)

    def _died(self, lane: Lane, shard: Shard | None, error: RayActorError) -> None:
        """The worker's process is gone, and all that it had been asked."""
        self.lost += 1
        logger.warning("worker lost", extra={"shard": shard.name if shard else "(loading)"})
        if shard is None:
            self._deaths_while_loading += 1
            if self._deaths_while_loading > self.retries:
                raise RunFailed(f"workers die while they load the engine: {error}")
        elif not error.preempted:
            self._again(shard, error)
            if self._failures[shard.name] == DEATHS_BEFORE_PROBING:
                self._probe(shard)
        else:
            self._queue.appendleft(shard)
        self._replace(lane)

    def _again(self, shard: Shard, cause: Exception) -> None:
        self._failures[shard.name] += 1
        if self._failures[shard.name] > max(self.retries, DEATHS_BEFORE_PROBING):
            raise RunFailed(
                f"shard {shard.name} failed {self._failures[shard.name]} times, last with: {cause}"
            )
        self._queue.appendleft(shard)

    def _replace(self, lane: Lane) -> None:
        waiting = [shard for _, shard in lane.leases if shard is not None]
        self._queue.extendleft(reversed(waiting))
        ray.kill(lane.actor)
        self._lanes[self._lanes.index(lane)] = self._lane()

    def _probe(self, shard: Shard) -> None:
        """Try each row of a shard alone, in workers that may die of it, to find who kills."""
        logger.warning("rows are tried alone", extra={"shard": shard.name, "rows": shard.rows})
        suspects: dict[int, str] = {}
        lane = self._loaded_lane()
        for row in range(shard.first, shard.first + shard.rows):
            try:
                wait(lane.actor.probe.remote(shard, row), self.stop)
            except RayTaskError as error:  # it raised, and will be rejected in the ordinary way
                logger.info("row raises", extra={"row": row, "why": repr(error.cause)})
            except RayActorError:
                self.lost += 1
                suspects[row] = "WorkerDied: the process died while this row was tried alone"
                logger.warning("row kills its worker", extra={"shard": shard.name, "row": row})
                lane = self._loaded_lane()
            if self.stop():
                break
        ray.kill(lane.actor)
        self._refused[shard.name] = suspects

    def _loaded_lane(self) -> Lane:
        """A worker that has its engine: what kills it now is a row."""
        lane = self._lane()
        try:
            wait(lane.leases[0][0], self.stop)
        except RayActorError as error:
            raise RunFailed(f"a worker died while it loaded the engine: {error}") from None
        return lane


def wait(ref: Any, stop: Callable[[], bool]) -> None:
    """An answer, or the error it ends in; gives up when told to stop."""
    while not stop():
        done, _ = ray.wait([ref], timeout=POLL_S)
        if done:
            ray.get(ref)
            return


def cluster_share(workers: str | int | tuple[int, int], device: str) -> tuple[int, Resources]:
    """How many workers, and what each holds: a GPU where the cluster has some, else CPUs.

    `device` is the job's: `cpu` leaves GPUs alone, `cuda` insists on them.
    """
    there = ray.cluster_resources()
    gpus = 0 if device == "cpu" else int(there.get("GPU", 0))
    cpus = int(there.get("CPU", 1))
    if device == "cuda" and not gpus:
        raise JobError("engine.device is cuda and the cluster has no GPU")
    match workers:
        case int():
            count = workers
        case (low, high):
            count = min(max(low, gpus or cpus), high)
        case _:
            count = gpus or 1
    of, name = (gpus, "GPUs") if gpus else (cpus, "CPUs")
    if count > of:
        raise JobError(f"workers: {count} asked for, and the cluster has {of} {name}")
    if gpus:
        return count, Resources(gpus=1, cpus=1)
    return count, Resources(gpus=0, cpus=cpus // count)
