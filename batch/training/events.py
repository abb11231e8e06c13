"""A run's curves for TensorBoard, where its package is installed."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.storage import Storage

FOLDER = "tensorboard"

logger = logging.getLogger(__name__)


class Events:
    """Scalars by step, below the output's `tensorboard/`. Into a bucket they come from a folder of
    this machine, when they are kept and in the end."""

    def __init__(self, storage: Storage, after: int) -> None:
        """Go on behind step `after`: what was told of later ones is taken back."""
        self.storage = storage
        self._writer: Any = None
        self._here: tempfile.TemporaryDirectory[str] | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("no TensorBoard events: pip install fluxmill[tensorboard] brings them")
            return
        if not storage.local:
            self._here = tempfile.TemporaryDirectory(prefix="fluxmill-events-")
        folder = self._here.name if self._here else storage.path(FOLDER)
        self._writer = SummaryWriter(folder, purge_step=after + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def keep(self) -> None:
        """Have what was told so far in the output."""
        if self._writer is None:
            return
        self._writer.flush()
        if self._here is not None:
            for file in sorted(Path(self._here.name).iterdir()):
                self.storage.replace_file(f"{FOLDER}/{file.name}", file)

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self.keep()
        if self._here is not None:
            self._here.cleanup()
