"""A cluster that grows: told how many workers a job could use, and waited for."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batch.errors import JobError
from batch.nodes import resources, wish_for_gpus
from batch.workers import Share, share_of
from schemas.jobs import Job

logger = logging.getLogger(__name__)

LOOK_S = 2.0
TOLD_S = 30.0


@contextmanager
def growing(job: Job, pieces: int) -> Iterator[None]:
    """Inside, Ray's autoscaler is asked for as many workers as the job names, or could keep busy.

    `auto` takes what is there and asks for nothing.
    """
    most = job.workers[-1] if isinstance(job.workers, tuple) else job.workers
    there = int(resources().get("GPU", 0))
    count = 0 if most == "auto" else min(most, pieces)
    if job.device == "cpu" or count <= there or (job.device == "auto" and not there):
        yield
        return
    logger.info("cluster asked to grow", extra={"workers": count, "there": there})
    wish_for_gpus(count)
    try:
        yield
    finally:
        wish_for_gpus(0)


def awaited(job: Job, stop: Callable[[], bool]) -> Share | None:
    """The job's share of the cluster, which has `worker_wait` seconds to be large enough; None if
    told to stop before. JobError if it is too small then."""
    began = time.monotonic()
    told = began
    while True:
        try:
            return share_of(resources(), job.workers, job.device)
        except JobError as error:
            now = time.monotonic()
            if now - began >= job.worker_wait:
                raise
            if now - told >= TOLD_S or told == began:
                told = now
                logger.info("waiting for the cluster to grow", extra={"why": str(error)})
        if stop():
            return None
        time.sleep(LOOK_S)
