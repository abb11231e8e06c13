"""What is done when a card's memory runs out in the middle of a batch: half as many are tried."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")


def attempt(stage: str, batch: int, work: Callable[[], T]) -> T | None:
    """What `work` on so many makes; None, with memory given back, if half of them should be tried.

    OutOfMemoryError if a single one is too many.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        if batch == 1:
            raise
    torch.cuda.empty_cache()  # here, where the error no longer holds what it was raised among
    logger.warning("batch halved for lack of memory", extra={"stage": stage, "batch": batch // 2})
    return None
