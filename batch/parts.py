"""Finished records of a shard that is not finished: a killed or stopped attempt is taken up there.

A part is an Arrow file below `_run/parts/<shard>/`. It is written as soon as the work that it would
save is worth many times what writing it costs, and it keeps pictures and tensors out of memory.
"""

import json
import logging
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import pyarrow as pa

from batch.output import RUN
from batch.storage import Storage
from schemas.records import (
    ImageRecord,
    Record,
    RejectedRecord,
    StoredFile,
    TargetRecord,
    TensorRecord,
    TrainingRecord,
)

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [("kind", pa.string()), ("told", pa.string()), ("blobs", pa.list_(pa.large_binary()))]
)
KINDS = {
    "image": ImageRecord,
    "target": TargetRecord,
    "training": TrainingRecord,
    "rejected": RejectedRecord,
}
NUMBERS = b"numbers"  # of the wishes in a part, in its schema's metadata
HELD_BYTES = 64 * 2**20  # of pictures and tensors in memory, per shard in progress
WORTH = 30  # a part is written when it saves this many times what one costs
FIRST_COST_S = 0.005
LAST = 3  # parts whose middle cost is what one costs: a single slow write postpones nothing


PARTS = f"{RUN}/parts"


def parts_folder(shard: str) -> str:
    return f"{PARTS}/{shard}"


class Parts:
    """A shard's records by the number of their wish, in memory and in parts."""

    def __init__(self, storage: Storage, shard: str) -> None:
        self.storage, self.folder = storage, parts_folder(shard)
        self._held: dict[int, Record] = {}
        self._bytes = 0  # of the pictures held
        self._kept: dict[int, tuple[str, int]] = {}  # which part, and where in it
        self._costs = deque([FIRST_COST_S] * LAST, maxlen=LAST)
        self._flushed = time.monotonic()
        self.rejected = 0
        for name in storage.names(self.folder):
            self._adopt(f"{self.folder}/{name}")

    def __contains__(self, number: int) -> bool:
        return number in self._held or number in self._kept

    def __len__(self) -> int:
        return len(self._held) + len(self._kept)

    def add(self, number: int, record: Record) -> None:
        """Hold a finished record, and write a part if that is due."""
        self._held[number] = record
        self.rejected += isinstance(record, RejectedRecord)
        self._bytes += sum(map(len, blobs_of(record)))
        saved = time.monotonic() - self._flushed
        if saved > WORTH * median(self._costs) or self._bytes > HELD_BYTES:
            self.flush()

    def rest(self) -> None:
        """Time that passes from here is not work that a part could save."""
        self._flushed = time.monotonic()

    def flush(self) -> None:
        """Write what is held as a part, and let go of it."""
        began = time.monotonic()
        if self._held:
            name = f"{self.folder}/{uuid.uuid4().hex}.arrow"
            self.storage.replace(name, to_part(self._held), durable=False)
            self._kept |= {number: (name, i) for i, number in enumerate(self._held)}
            self._held, self._bytes = {}, 0
        self._flushed = time.monotonic()
        self._costs.append(max(self._flushed - began, FIRST_COST_S))

    def records(self, numbers: Sequence[int]) -> Iterator[Record]:
        """These records, in this order."""
        opened: dict[str, pa.ipc.RecordBatchFileReader] = {}
        for number in numbers:
            if number in self._held:
                yield self._held[number]
                continue
            name, place = self._kept[number]
            if name not in opened:
                opened[name] = pa.ipc.open_file(self.storage.open(name))
            yield from_batch(opened[name].get_batch(place))

    def remove(self) -> None:
        """The shard is published: nobody needs its parts."""
        if self._kept:
            self.storage.remove_folder(self.folder)

    def _adopt(self, name: str) -> None:
        """What an earlier attempt has left; a part that the machine tore in its fall is no loss."""
        try:
            part = pa.ipc.open_file(self.storage.open(name))
            numbers = json.loads(part.schema.metadata[NUMBERS])
            for place, number in enumerate(numbers):
                kind = part.get_batch(place)["kind"][0].as_py()
                if number not in self:
                    self._kept[number] = (name, place)
                    self.rejected += kind == "rejected"
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            logger.warning("part left aside", extra={"part": name, "why": str(error)})


def to_part(records: dict[int, Record]) -> pa.Buffer:
    """One batch for each record, so that each can be read on its own."""
    out = pa.BufferOutputStream()
    schema = SCHEMA.with_metadata({NUMBERS: json.dumps(list(records)).encode()})
    with pa.ipc.new_file(out, schema) as writer:
        for record in records.values():
            kind = next(name for name, model in KINDS.items() if isinstance(record, model))
            row = {"kind": kind, "told": json.dumps(told_of(record)), "blobs": blobs_of(record)}
            writer.write_batch(pa.RecordBatch.from_pylist([row], schema))
    return out.getvalue()


def blobs_of(record: Record) -> list[bytes]:
    """What of a record is not words: its picture, its files, or its tensors in the order of their
    names."""
    match record:
        case ImageRecord():
            return [record.image]
        case TargetRecord():
            return [record.tensors[name].bytes for name in sorted(record.tensors)]
        case TrainingRecord():
            return [record.image.bytes, *(file.bytes for file in flat(record))]
        case RejectedRecord():
            return []


def flat(record: TrainingRecord) -> Iterator[StoredFile]:
    """A row's further files, one after the other."""
    for found in record.files.values():
        if found is not None:
            yield from (found if isinstance(found, tuple) else (found,))


def told_of(record: Record) -> dict[str, Any]:
    """All the rest of it, as JSON has it."""
    if isinstance(record, TrainingRecord):
        return told_of_training(record)
    told = record.model_dump(exclude={"image", "tensors"})
    if isinstance(record, TargetRecord):
        told["tensors"] = {
            n: {"shape": t.shape, "dtype": t.dtype} for n, t in record.tensors.items()
        }
    return told


def told_of_training(record: TrainingRecord) -> dict[str, Any]:
    """Its words, with a path where a file is."""
    files = {
        name: [file.path for file in found]
        if isinstance(found, tuple)
        else None
        if found is None
        else {"path": found.path}
        for name, found in record.files.items()
    }
    told = record.model_dump(exclude={"image", "files"})
    return told | {"files": files, "path": record.image.path}


def training_of(told: dict[str, Any], blobs: list[bytes]) -> TrainingRecord:
    """The record of such words and its files in their order."""
    waiting = iter(blobs)
    image = StoredFile(bytes=next(waiting), path=told.pop("path"))
    files: dict[str, StoredFile | tuple[StoredFile, ...] | None] = {}
    for name, found in told.pop("files").items():
        if isinstance(found, list):
            files[name] = tuple(StoredFile(bytes=next(waiting), path=path) for path in found)
        elif found is not None:
            files[name] = StoredFile(bytes=next(waiting), path=found["path"])
        else:
            files[name] = None
    return TrainingRecord(**told, image=image, files=files)


def from_batch(batch: pa.RecordBatch) -> Record:
    (row,) = batch.to_pylist()
    told, blobs = json.loads(row["told"]), row["blobs"]
    match row["kind"]:
        case "image":
            return ImageRecord(**told, image=blobs[0])
        case "training":
            return training_of(told, blobs)
        case "target":
            names = sorted(told.pop("tensors").items())
            tensors = {
                name: TensorRecord(bytes=blob, **shape)
                for (name, shape), blob in zip(names, blobs, strict=True)
            }
            return TargetRecord(**told, tensors=tensors)
        case _:
            return RejectedRecord(**told)
