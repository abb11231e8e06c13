"""What the text encoders say to each distinct caption, once: a table that readers map to memory.

An Arrow file a shard below `text/`, a record batch a caption, so that a mapped file gives one
caption's tensors without reading the others. All positions are kept: FLUX.1 attends to padding.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from torch import Tensor

from batch.errors import BatchError
from batch.targets.layout import ID, triple
from batch.targets.tensors import loaded, stored
from schemas.targets import METADATA

TEXT = "text"
SUFFIX = ".arrow"
NAMES = ("t5", "clip")
OPEN = 256  # files at a time: a large dataset has more than a process may open


class TextError(BatchError):
    """A caption whose text is not in the table, or is another caption's."""


@dataclass(frozen=True)
class Told:
    """One caption with T5's states (T, W) and CLIP's pooled vector (P,).

    `halved` is how many it was encoded among if memory was short of the chosen number, else 0.
    """

    caption_id: str
    caption: str
    t5: Tensor
    clip: Tensor
    halved: int = 0


def caption_id(caption: str, length: int, encoders: Mapping[str, Any], changed: str = "") -> str:
    """Hex of all that decides a caption's text: its words, its length in T5 tokens, the encoders
    and what LoRAs have made of them."""
    told = json.dumps([caption, length, encoders, changed], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def schema_of(identity: Mapping[str, Any]) -> pa.Schema:
    fields = [pa.field("caption_id", ID), pa.field("caption", pa.string())]
    for name in NAMES:
        data, shape, dtype = triple(name)
        fields += [
            pa.field(data, pa.large_binary()),
            pa.field(shape, pa.list_(pa.int32())),
            pa.field(dtype, pa.string()),
        ]
    fields.append(pa.field("halved", pa.int32()))
    return pa.schema(fields, metadata={METADATA: json.dumps(identity, sort_keys=True)})


def write_texts(file: BinaryIO, texts: Iterable[Told], identity: Mapping[str, Any]) -> None:
    schema = schema_of(identity)
    with pa.ipc.new_file(file, schema) as writer:
        for text in texts:
            row: dict[str, Any] = {
                "caption_id": bytes.fromhex(text.caption_id),
                "caption": text.caption,
                "halved": text.halved,
            }
            for name in NAMES:
                tensor = stored(getattr(text, name))
                told = (tensor.bytes, tensor.shape, tensor.dtype)
                row |= dict(zip(triple(name), told, strict=True))
            writer.write_batch(pa.RecordBatch.from_pylist([row], schema))


def opened(path: Path) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))


class TextTable:
    """Texts by caption id, from all files of a folder; of a caption that stands in several files
    (two runs met) any one will do. Threads may ask at once."""

    def __init__(self, folder: Path) -> None:
        self._open = lru_cache(OPEN)(opened)
        self._lock = threading.Lock()
        self._places: dict[bytes, tuple[Path, int]] = {}
        self.identities: list[tuple[Path, dict[str, Any]]] = []
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            file = opened(path)
            self.identities.append((path, json.loads(file.schema.metadata[METADATA.encode()])))
            for place in range(file.num_record_batches):
                key = file.get_batch(place).column("caption_id")[0].as_py()
                self._places.setdefault(key, (path, place))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, caption_id: str) -> bool:
        return bytes.fromhex(caption_id) in self._places

    def ids(self) -> list[str]:
        return [key.hex() for key in self._places]

    def __getitem__(self, caption_id: str) -> Told:
        """TextError if it is not here."""
        place = self._places.get(bytes.fromhex(caption_id))
        if place is None:
            raise TextError(f"caption {caption_id}: has no text in this table")
        with self._lock:  # of what a file's reader allows, Arrow says nothing
            batch = self._open(place[0]).get_batch(place[1])
        tensors = {}
        for name in NAMES:
            data, shape, dtype = (batch.column(column)[0] for column in triple(name))
            tensors[name] = loaded(memoryview(data.as_buffer()), shape.as_py(), dtype.as_py())
        caption, halved = (batch.column(name)[0].as_py() for name in ("caption", "halved"))
        return Told(caption_id, caption, halved=halved, **tensors)
