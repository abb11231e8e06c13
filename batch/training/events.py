"""A run's curves for TensorBoard, where its package is installed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.storage import Storage

FOLDER = "tensorboard"

logger = logging.getLogger(__name__)


class Events:
    """Scalars by step, below the output's `tensorboard/`; of an output in a bucket there are
    none."""

    def __init__(self, storage: Storage, after: int) -> None:
        """Go on behind step `after`: what was told of later ones is taken back."""
        self._writer: Any = None
        if not storage.local:
            logger.info("no TensorBoard events: they are for outputs on a disk")
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("no TensorBoard events: pip install fluxmill[tensorboard] brings them")
            return
        folder = Path(storage.path(FOLDER))
        self._writer = SummaryWriter(str(folder), purge_step=after + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
