"""A cluster that grows: told how many workers a job could use, and waited for."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from batch.errors import JobError
from batch.nodes import resources, waiting, wish_for_gpus, withdraw
from batch.workers import Share, share_of
from schemas.jobs import Job

logger = logging.getLogger(__name__)

LOOK_S = 2.0
TOLD_S = 30.0


@contextmanager
def growing(job: Job, pieces: int) -> Iterator[None]:
    """Inside, Ray's autoscaler is asked for as many GPUs as the job names, or could keep busy.

    `auto` takes what is there and asks for nothing.
    """
    most = job.workers[-1] if isinstance(job.workers, tuple) else job.workers
    there = int(resources().get("GPU", 0))
    count = 0 if most == "auto" else min(most, pieces)
    if job.device == "cpu" or count <= there or (job.device == "auto" and not there):
        yield
        return
    logger.info("cluster asked to grow", extra={"workers": count, "there": there})
    over = threading.Event()
    keeper = threading.Thread(target=keep_wishing, args=(count, over), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def keep_wishing(count: int, over: threading.Event) -> None:
    """As many wishes as GPUs are missing to the count, whenever some come or go."""
    wishes: list[Any] = []
    while not over.is_set():
        wishes = renewed(wishes, max(count - int(resources().get("GPU", 0)), 0))
        over.wait(LOOK_S)
    withdraw(wishes)


def renewed(wishes: Sequence[Any], missing: int) -> list[Any]:
    """So many that wait: one new node may have served several."""
    left = waiting(wishes)
    withdraw(left[missing:])
    return left[:missing] + wish_for_gpus(max(missing - len(left), 0))


def awaited(job: Job, stop: Callable[[], bool]) -> Share | None:
    """The job's share of the cluster, which has `worker_wait` seconds to be large enough; None if
    told to stop before. JobError if it is too small then."""
    began, told = time.monotonic(), -math.inf
    while True:
        try:
            return share_of(resources(), job.workers, job.device)
        except JobError as error:
            now = time.monotonic()
            if now - began >= job.worker_wait:
                raise
            if now - told >= TOLD_S:
                told = now
                logger.info("waiting for the cluster to grow", extra={"why": str(error)})
        if stop():
            return None
        time.sleep(LOOK_S)
