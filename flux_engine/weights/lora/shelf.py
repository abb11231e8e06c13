"""LoRAs that were read: the latest ones are kept, within so many bytes."""

import logging
from collections import OrderedDict
from pathlib import Path

from flux_engine.request import LoraUse
from flux_engine.weights.lora.alphas import config_of
from flux_engine.weights.lora.file import Lora
from flux_engine.weights.lora.names import Sizes
from flux_engine.weights.lora.read import lora_file, read_lora
from flux_engine.weights.source import ModelSource, fetch

logger = logging.getLogger(__name__)

SHELF_BYTES = 4 * 2**30
PATTERN = "*.safetensors"  # of a repository that is named without one

# files as they stand (the LoRA's, PEFT's configuration): bytes, and the time of the last change
Stamp = tuple[tuple[Path, int, int], ...]


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
        file = self.file(use)
        stamp = stamped(file)
        lora = self._kept.get(stamp)
        if lora is None:
            lora = read_lora(file, self.sizes)
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
    """A link is not its target: what stands beside it is looked for where it lies itself."""
    config = config_of(file)
    told = [(one, one.stat()) for one in ((file,) if config is None else (file, config))]
    return tuple((one.resolve(), stat.st_size, stat.st_mtime_ns) for one, stat in told)
