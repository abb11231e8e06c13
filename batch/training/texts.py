"""What the text encoders say to captions that no dataset has told: once on each host, on its disk.

The table is that of distillation targets. It lies below FLUXMILL_TEXTS or the user's cache, in a
folder for these encoders, so that ranks, resumed runs and other jobs find it; memory holds what is
being read of it, and the encoders are gone when the table is whole.
"""

import hashlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from batch.targets.text import SUFFIX, TextTable, Told, caption_id, write_texts
from flux_engine.encode import TextEncoder, TextKey, TextModels

CACHE_VARIABLE = "FLUXMILL_TEXTS"
BATCH = 8  # captions that go through the encoders at once
FILE = 256  # captions to a file of the table

logger = logging.getLogger(__name__)


def cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/fluxmill/texts").expanduser()


class Texts:
    """Texts by caption and length in T5 tokens. `encoders`, asked when the first text is, says
    whose: weights, tokenizers and type."""

    def __init__(
        self, encoders: Callable[[], Mapping[str, Any]], folder: Path | None = None
    ) -> None:
        self._encoders, self._place = encoders, folder
        self.encoded = 0  # captions that went through the encoders here
        self._table: TextTable | None = None
        self._lock = threading.Lock()

    @cached_property
    def encoders(self) -> dict[str, Any]:
        return dict(self._encoders())

    @cached_property
    def folder(self) -> Path:
        """Where the table of these encoders and tokenizers is."""
        told = json.dumps(self.encoders, sort_keys=True)
        name = hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
        return (self._place or cache()) / name

    def __getitem__(self, key: TextKey) -> Told:
        """TextError if it was never encoded."""
        with self._lock:
            return self._opened()[self._name(key)]

    def missing(self, wanted: Iterable[TextKey]) -> list[TextKey]:
        """Distinct ones that the table lacks, in order."""
        table = self._opened()
        return [key for key in dict.fromkeys(wanted) if self._name(key) not in table]

    def encode(
        self,
        wanted: Sequence[TextKey],
        load: Callable[[], TextModels],
        device: torch.device,
    ) -> None:
        """Have the table hold all of these; `load` is called if one is not there yet. One process
        of a host encodes, the others wait for it."""
        if not wanted or not self.missing(wanted):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self._table = None  # somebody may have been here
            todo = self.missing(wanted)
            if todo:
                logger.info("encoding captions", extra={"captions": len(todo)})
                self._write(todo, load(), device)
                self._table = None

    def _write(self, todo: Sequence[TextKey], models: TextModels, device: torch.device) -> None:
        encoder = TextEncoder(models, device, lambda _: BATCH, cache_bytes=0)
        for first in range(0, len(todo), FILE):
            some = todo[first : first + FILE]
            part = self.folder / f".{uuid.uuid4().hex}.part"
            try:
                with part.open("wb") as file:
                    write_texts(file, self._told(some, encoder), self.encoders)
                part.replace(self.folder / f"{uuid.uuid4().hex}{SUFFIX}")
            finally:
                part.unlink(missing_ok=True)
        self.encoded += encoder.encoded

    def _told(self, keys: Sequence[TextKey], encoder: TextEncoder) -> Iterator[Told]:
        for first in range(0, len(keys), BATCH):
            for key, text in encoder(keys[first : first + BATCH]).items():
                yield Told(self._name(key), key[0], text.states_TW, text.pooled_P, text.halved)

    def _opened(self) -> TextTable:
        if self._table is None:
            self._table = TextTable(self.folder)
        return self._table

    def _name(self, key: TextKey) -> str:
        caption, length = key
        return caption_id(caption, length, self.encoders)
