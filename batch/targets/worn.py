"""The LoRAs that a dataset's rows were made with, where they lie now: those of the same content."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from batch.errors import LoraError
from batch.lora_files import LoraFiles
from batch.targets.checks import Row
from flux_engine.errors import CheckpointError, SourceError
from flux_engine.request import LoraUse
from flux_engine.weights.lora.shelf import Shelf
from schemas.jobs import DistillJob
from schemas.lora import LoraEntry, LoraRecord
from schemas.records import TargetRecord

MODEL = re.compile(r"([\w.-]+/[\w.-]+)(?::(.+))?")  # as records name what came from a hub
HUBS = ("modelscope", "huggingface")


@dataclass(frozen=True)
class Worn:
    """Rows whose LoRAs are at hand; `absent` says of the others why not, `changed` which files
    are others now than those that rows were made with."""

    rows: tuple[Row, ...]
    absent: tuple[str, ...]
    changed: tuple[str, ...]


class OtherFileError(LoraError):
    """There is a LoRA of that name, and it is another one."""


class Wardrobe:
    """Finds LoRAs by the names in records: the job's own, the manifest's beside `folder`, a hub's.

    Each is looked for once.
    """

    def __init__(self, job: DistillJob, folder: str, shelf: Shelf) -> None:
        self.files = LoraFiles((folder, *job.lora_roots))
        self.named = {entry.name: entry for entry in job.sampling.loras}
        self.shelf = shelf
        self._found: dict[tuple[str, str], LoraUse | LoraError] = {}

    def dress(self, records: Sequence[TargetRecord]) -> Worn:
        rows: list[Row] = []
        absent: list[str] = []
        changed: dict[str, None] = {}
        for record in records:
            try:
                rows.append(Row(record, tuple(self.use(lora) for lora in record.loras)))
            except OtherFileError as error:
                changed[str(error)] = None
            except LoraError as error:
                absent.append(f"{record.key}: {error}")
        return Worn(tuple(rows), tuple(absent), tuple(changed))

    def use(self, lora: LoraRecord) -> LoraUse:
        """LoraError if it cannot be had, OtherFileError if what is found has another content."""
        key = lora.name, lora.sha256
        if key not in self._found:
            self._found[key] = self._sought(lora)
        found = self._found[key]
        if isinstance(found, LoraError):
            raise found
        return replace(found, scale=lora.scale)

    def _sought(self, lora: LoraRecord) -> LoraUse | LoraError:
        faults: list[str] = []
        others: list[str] = []
        for find in self._places(lora.name):
            try:
                use = find()
                digest = self.shelf.take(use).digest
            except (LoraError, SourceError, CheckpointError) as error:
                faults.append(str(error))
                continue
            if digest == lora.sha256:
                return use
            others.append(digest)
        if others:
            return OtherFileError(
                f"LoRA {lora.name} has the hash {others[0][:12]}…, and rows were made with "
                f"{lora.sha256[:12]}…"
            )
        return LoraError("; ".join(faults))

    def _places(self, name: str) -> Iterator[partial[LoraUse]]:
        if name in self.named:
            yield partial(self.files.of_job, self.named[name])
            return
        yield partial(self.files.of_row, LoraEntry(path=name))
        found = MODEL.fullmatch(name)
        if found and (found[2] or not name.endswith(".safetensors")):
            for hub in HUBS:
                entry = LoraEntry.parse(
                    {
                        "model_id": found[1],
                        "origin_file_pattern": found[2],
                        "download_source": hub,
                    }
                )
                yield partial(self.files.of_row, entry)
