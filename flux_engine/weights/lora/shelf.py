"""LoRAs that were read: the latest ones are kept, within so many bytes."""

import logging
from collections import OrderedDict
from pathlib import Path

from flux_engine.request import LoraUse
from flux_engine.weights.lora.file import Lora
from flux_engine.weights.lora.names import Sizes
from flux_engine.weights.lora.read import lora_file, read_lora
from flux_engine.weights.source import ModelSource, fetch

logger = logging.getLogger(__name__)

SHELF_BYTES = 4 * 2**30
PATTERN = "*.safetensors"  # of a repository that is named without one

Stamp = tuple[Path, int, int]  # a file as it stands: its bytes and the time of its last change


class Shelf:
    """Reads each LoRA once as long as there is room; `reads` counts how often one was read."""

    def __init__(self, sizes: Sizes, limit: int = SHELF_BYTES) -> None:
        self.sizes, self.limit = sizes, limit
        self.reads = 0
        self._kept: OrderedDict[Stamp, Lora] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return sum(lora.nbytes for lora in self._kept.values())

    def file(self, use: LoraUse) -> Path:
        """Its file on this machine, downloaded if it has to be; SourceError if it is not to be
        had."""
        if use.path is not None:
            return lora_file(fetch(ModelSource(use.path)))
        pattern = use.origin_file_pattern or PATTERN
        return lora_file(fetch(ModelSource(None, use.model_id, pattern, use.download_source)))

    def take(self, use: LoraUse) -> Lora:
        """The LoRA, read unless it is here and its file unchanged.

        SourceError or CheckpointError if it cannot be had or used.
        """
        stamp = stamped(self.file(use))
        lora = self._kept.get(stamp)
        if lora is None:
            lora = read_lora(stamp[0], self.sizes)
            self.reads += 1
            logger.info(
                "LoRA read",
                extra={"lora": use.name, "parameters": len(lora.targets), "bytes": lora.nbytes},
            )
        self._kept[stamp] = lora
        self._kept.move_to_end(stamp)
        held = self.nbytes
        while held > self.limit and len(self._kept) > 1:
            held -= self._kept.popitem(last=False)[1].nbytes
        return lora


def stamped(file: Path) -> Stamp:
    told = file.stat()
    return file.resolve(), told.st_size, told.st_mtime_ns
