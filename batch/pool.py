"""Ray actors, one to a GPU, kept busy; lost ones replaced. Scheduling and placement are Ray's."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from batch.backlog import Backlog, Lease
from batch.blame import Blame
from batch.crumb import crumb_path, read_crumb
from batch.errors import BatchError, MachineFault, RunFailed, StorageDown
from batch.lane import LEASES, TALK, WORK, Lane, MakeWorker, start_lane
from batch.nodes import alive, ask, resources
from batch.report import ShardReport
from batch.shards import Shard
from batch.workers import Share
from flux_engine.errors import EngineError

logger = logging.getLogger(__name__)

POLL_S = 0.2
PULSE_S = 1.0
LOOK_S = 5.0  # between two looks at the size of the cluster
DRAIN_S = 55.0  # RAY_JOB_STOP_WAIT_TIME_S is to be more
FIRST_TIMEOUT_S = 3600.0  # of a micro-batch, as long as none has been timed
LEAST_TIMEOUT_S = 300.0
LOAD_TIMEOUT_S = 4 * 3600.0  # of an engine, the download of its weights included
TOLD_S = 60.0  # between two words about workers that load
LOADS = 4  # that may fail one after the other, whatever shards there are
PROVEN = 10  # times as many may, once some worker has had the engine: then it is not to blame
PATIENCE = 20  # times the longest micro-batch so far


class Pool:
    """Keeps workers busy with shards until none is left, or `stop` says so.

    `row_timeout`: seconds that one micro-batch may take; None: a rule of those seen so far.
    `proven`: whether an earlier run's workers had this engine.
    """

    def __init__(
        self,
        make: MakeWorker,
        share: Share,
        *,
        retries: int,
        stop: Callable[[], bool],
        row_timeout: float | None = None,
        proven: bool = False,
    ) -> None:
        self.make, self.share, self.stop = make, share, stop
        self.retries, self.row_timeout = retries, row_timeout
        self.lost = 0
        self._blame = Blame(retries)
        self._backlog = Backlog([])
        self._lanes: list[Lane] = []
        self._wanted = 0
        self._most = 0  # workers that could have something to do
        self._looked = -LOOK_S
        self._proven = proven
        self._told = time.monotonic()
        self._failed_loads = 0  # since the last one that came off
        self._slowest = 0.0
        self._busy_before = 0.0  # of workers that are gone

    @property
    def loaded(self) -> int:
        """How many workers have their engine."""
        return sum(lane.node is not None for lane in self._lanes)

    @property
    def underway(self) -> int:
        """Records that are finished in shards that are not reported yet."""
        return sum(lane.pulse.finished for lane in self._lanes if lane.pulse)

    @property
    def busy(self) -> float:
        """Seconds that cards have worked."""
        return self._busy_before + sum(lane.pulse.busy for lane in self._lanes if lane.pulse)

    def run(self, shards: Iterable[Shard]) -> Iterator[ShardReport | None]:
        """A report for each shard as it is finished, and None whenever nothing happened.

        When told to stop, workers finish the micro-batch they are at and keep what is finished.
        """
        self._backlog = Backlog(shards)
        self._most = self._backlog.pieces
        try:
            while (self._backlog or self._leased()) and not self.stop():
                self._man()
                self._lease()
                yield from self._answers(POLL_S)
                self._look_after()
            yield from self._drain()
        finally:
            for lane in self._lanes:
                ray.kill(lane.actor)
                crumb_path(lane.name).unlink(missing_ok=True)  # on other machines it is swept

    def _leased(self) -> bool:
        return any(lane.leases for lane in self._lanes)

    def _man(self) -> None:
        """As many lanes as the cluster has room for and the job wants."""
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self._wanted = self._wanted_now()
        while len(self._lanes) < self._wanted:
            self._start_lane()

    def _start_lane(self, *, alone: bool = False) -> None:
        self._lanes.append(start_lane(self.make, self.share.resources, alone=alone))

    def _wanted_now(self) -> int:
        return min(self.share.wanted(resources()), self._most)

    def _lease(self) -> None:
        """Breadth first, so that the last shards are spread over all workers."""
        loaded = [lane for lane in self._lanes if lane.node is not None]
        if self._backlog.alone and loaded and not any(lane.alone for lane in self._lanes):
            min(loaded, key=lambda lane: len(lane.leases)).alone = True
        for lane in loaded:
            if lane.alone and not lane.leases:
                lease = self._backlog.take_alone()
                lane.alone = lease is not None
                if lease:
                    self._give(lane, lease)
        common = [lane for lane in self._lanes if not lane.alone]
        for depth in range(1, LEASES + 1):
            busy = len(common) > 1 and all(lane.leases for lane in common)
            self._backlog.split(len(common), busy=busy)
            for lane in common:
                idle = sum(not other.leases for other in common)  # those that still load, too
                if len(lane.leases) >= depth or lane.node is None:
                    continue
                if lane.leases and self._backlog.ordinary <= idle:
                    break
                if lease := self._backlog.take():
                    self._give(lane, lease)

    def _give(self, lane: Lane, lease: Lease) -> None:
        refused = self._blame.refused.get(lease.shard.name, {})
        work = lane.actor.work.options(concurrency_group=WORK)
        lane.leases[work.remote(lease.shard, refused, lease.rows)] = lease

    def _answers(self, patience: float) -> Iterator[ShardReport | None]:
        """Reports of what has been answered, or one None if nothing has."""
        refs = [ref for lane in self._lanes for ref in lane.refs()]
        if not refs:
            time.sleep(patience)
            yield None
            return
        done, rest = ray.wait(refs, num_returns=1, timeout=patience)
        if done and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
            done += more
        nothing = True
        for ref in done:
            lane = next((x for x in self._lanes if ref in x.refs()), None)
            if lane is None:  # an earlier answer has told that this lane is gone
                continue
            report = self._answer(lane, ref)
            if report is not None:
                nothing = False
                yield report
        if nothing:
            yield None

    def _answer(self, lane: Lane, ref: Any) -> ShardReport | None:
        try:
            told = ray.get(ref)
        except RayTaskError as error:
            self._failed(lane, ref, error)
            return None
        except RayError as error:  # not `RayActorError` alone: memory that runs out is another one
            self._died(lane, error)
            return None
        if ref == lane.loading and lane.node is None:
            lane.node = told
            self._proven, self._failed_loads = True, 0
            return None
        if ref == lane.asked:
            lane.asked, lane.pulse = None, told
            self._slowest = max(self._slowest, told.slowest)
            return None
        lease = lane.leases.pop(ref)
        if lease.rows is not None and told.state == "part":
            self._backlog.answered(lease)
            return None
        report: ShardReport = told
        if report.state == "part":  # it leaves
            self._backlog.give_back(lease)
        elif lease.rows is not None:  # another run has published the shard
            self._backlog.answered(lease)
            return None
        return report

    def _failed(self, lane: Lane, ref: Any, error: RayTaskError) -> None:
        """The worker raised: our own or the user's fault stops the run, else try elsewhere."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        lease = lane.leases.get(ref)
        if isinstance(cause, MachineFault) and lease is not None:
            logger.warning("machine gave out", extra={"shard": lease.shard.name, "why": str(cause)})
            why = f"MachineFault: {str(cause).partition(':')[0]}, tried alone"
            self._strike(lane, why, (lease.shard.name, list(cause.rows)))
        elif everyones(cause) or (lease is None and ref != lane.loading):
            raise cause
        elif lease is None:
            self._failed_to_load(f"{type(cause).__name__}: {cause}")
        else:
            logger.warning("shard failed", extra={"shard": lease.shard.name, "why": repr(cause)})
            self._blame.failure(lease.shard, cause)
            self._take_back(lane)
        self._replace(lane)

    def _died(self, lane: Lane, error: RayError) -> None:
        """The worker's process is gone, and all that it had been asked."""
        self.lost += 1
        told = ", ".join(lease.shard.name for lease in lane.leases.values())
        logger.warning("worker lost", extra={"had": told or "(loading)"})
        preempted = getattr(error, "preempted", False)
        if preempted or (lane.node is not None and lane.node not in alive()):
            self._take_back(lane)
        elif lane.node is None:
            self._failed_to_load(str(error).partition("\n")[0])
        elif lane.hung:
            self._strike(lane, "RowTimeout: it took longer than row_timeout, tried alone")
        elif isinstance(error, OutOfMemoryError):
            self._strike(lane, "WorkerDied: its machine had no memory left, tried alone")
        else:
            self._strike(lane, "WorkerDied: the process died while this row was tried alone")
        self._replace(lane)

    def _failed_to_load(self, why: str) -> None:
        """RunFailed if that goes on. A worker that is killed from outside cannot be told from one
        that its engine killed, but by whether another has had that engine."""
        self._failed_loads += 1
        logger.warning("engine not loaded", extra={"times": self._failed_loads, "why": why})
        if self._failed_loads > LOADS * (PROVEN if self._proven else 1):
            raise RunFailed(f"workers cannot load the engine, {self._failed_loads} times: {why}")

    def _strike(self, lane: Lane, why: str, at: tuple[str, list[int]] | None = None) -> None:
        """Blame the rows that the worker was at, and take back what it had. A process that is gone
        has left a crumb that says where it was."""
        assert lane.node is not None
        leases = list(lane.leases.values())
        at = at or ask(lane.node, read_crumb, crumb_path(lane.name))
        if lane.alone and len(leases) == 1 and leases[0].rows is not None:
            (row,) = leases[0].rows
            self._blame.refuse(leases[0].shard, row, why)
            logger.warning("row refused", extra={"shard": leases[0].shard.name, "row": row})
            lane.leases.clear()
            self._backlog.answered(leases[0])
            return
        self._take_back(lane)
        shards = {lease.shard.name: lease.shard for lease in leases}
        for shard in shards.values():
            suspects = self._blame.death(shard)
            if at and at[0] == shard.name:
                suspects += self._blame.strike(shard, at[1])
            if suspects:
                logger.warning(
                    "rows are tried alone", extra={"shard": shard.name, "rows": len(suspects)}
                )
                self._backlog.suspect(shard, suspects)

    def _take_back(self, lane: Lane) -> None:
        for lease in reversed(list(lane.leases.values())):
            self._backlog.give_back(lease)
        lane.leases.clear()

    def _replace(self, lane: Lane) -> None:
        ray.kill(lane.actor)
        if lane.pulse:
            self._busy_before += lane.pulse.busy
        self._lanes.remove(lane)
        self._wanted = self._wanted_now()
        if len(self._lanes) < self._wanted:
            self._start_lane(alone=bool(self._backlog.alone))

    def _look_after(self) -> None:
        """Ask each worker now and then what it is at; end one that has been at it for too long."""
        now = time.monotonic()
        self._look_after_loads(now)
        for lane in self._lanes:
            if lane.node is None or lane.hung:
                continue
            silent = now - lane.asked_at if lane.asked is not None else 0.0
            at_it = lane.pulse.seconds if lane.pulse and lane.pulse.stage else 0.0
            of_rows = lane.pulse is None or not lane.pulse.stage or lane.pulse.rows
            if max(silent, at_it) > (self._patience() if of_rows else FIRST_TIMEOUT_S):
                logger.warning("worker hangs", extra={"seconds": round(max(silent, at_it))})
                lane.hung = True
                ray.kill(lane.actor)
            elif lane.asked is None and now - lane.asked_at > PULSE_S:
                lane.asked = lane.actor.pulse.options(concurrency_group=TALK).remote()
                lane.asked_at = now

    def _look_after_loads(self, now: float) -> None:
        """Say now and then how long workers have been loading; end one that takes too long."""
        begun = [lane.begun for lane in self._lanes if lane.node is None]
        if begun and now - max(self._told, min(begun)) > TOLD_S:
            self._told = now
            told = {"workers": len(begun), "seconds": round(now - min(begun))}
            logger.info("workers wait for resources or load their engine", extra=told)
        for lane in self._lanes:
            if lane.node is None and not lane.hung and now - lane.begun > LOAD_TIMEOUT_S:
                lane.hung = True
                ray.kill(lane.actor)

    def _patience(self) -> float:
        if self.row_timeout is not None:
            return self.row_timeout
        if not self._slowest:
            return FIRST_TIMEOUT_S
        return max(LEAST_TIMEOUT_S, PATIENCE * self._slowest)

    def _drain(self) -> Iterator[ShardReport | None]:
        """Let the workers keep what is finished of what they have in hand."""
        began = time.monotonic()
        for lane in self._lanes:
            if lane.leases:
                lane.actor.leave.options(concurrency_group=TALK).remote()
        while self._leased() and time.monotonic() - began < DRAIN_S:
            yield from self._answers(POLL_S)


def everyones(cause: Exception) -> bool:
    """Whether a fault is the user's or ours, so that trying elsewhere is no use."""
    return isinstance(cause, EngineError | BatchError) and not isinstance(cause, StorageDown)
