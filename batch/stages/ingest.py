"""Captioned pictures into training records; no engine, no GPU."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import PIL
import pyarrow as pa

from batch.errors import CaptionError, MachineFault, PictureError
from batch.ingest.lines import Line, Ref, line_of
from batch.ingest.place import here, root_of
from batch.media import size_of
from batch.publish import Beside, Written
from batch.roots import Roots
from batch.shards import Shard
from batch.sink import Carried, write_training
from batch.stages.base import Listener
from batch.web import shown
from batch.wishes import Wish, rejected
from schemas.ingest import IngestJob
from schemas.records import Record, StoredFile, TrainingRecord

AT_ONCE = 8  # pictures that are decoded side by side, and that one of which may kill the process


class IngestStage:
    """Wishes into records; each row fails alone. Files are kept as they are, having been decoded
    once."""

    def __init__(self, job: IngestJob) -> None:
        self.job = job
        self.fingerprint: dict[str, Any] = {"weights": {}, "versions": {"pillow": PIL.__version__}}
        self.deviations: list[float] = []
        self.roots: Roots
        self.pool: ThreadPoolExecutor

    def setup(self) -> None:
        """Bring a hub's data set to this machine, if that is the source."""
        self.roots = Roots((root_of(here(self.job)), *self.job.picture_roots))
        self.pool = ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1), "decoder")

    def __call__(
        self, wishes: Sequence[Wish], file: str, listener: Listener
    ) -> Iterator[tuple[Wish, Future[Record]]]:
        """Each wish with the record that it has; some are left out if the listener leaves.
        MachineFault if memory gives out."""
        for first in range(0, len(wishes), AT_ONCE):
            if listener.leaving():
                return
            some = wishes[first : first + AT_ONCE]
            listener.at("read", some)
            records = [self.pool.submit(self._record, wish, file) for wish in some]
            for wish, record in zip(some, records, strict=True):
                if isinstance(record.exception(), MemoryError):
                    raise MachineFault("MemoryError while pictures were decoded")
                yield wish, record

    def _record(self, wish: Wish, file: str) -> Record:
        line = line_of(self.job, wish.row.values, f"{file}:{wish.row.number}")
        try:
            return self._training(wish.row.key, line)
        except (PictureError, CaptionError) as error:
            told = str(error)
            reason = told if told.startswith(line.where) else f"{line.where}: {told}"
            return rejected(wish, file, type(error).__name__, reason)

    def _training(self, key: str, line: Line) -> TrainingRecord:
        if line.fault:
            raise PictureError(line.fault)
        image = line.files["image"]
        if not isinstance(image, Ref):
            raise PictureError("the row has no image")
        prompt = self._caption(line)
        stored, (width, height) = self._file(image)
        others = {name: ref for name, ref in line.files.items() if name != "image"}
        return TrainingRecord(
            key=key,
            prompt=prompt,
            image=stored,
            image_width=width,
            image_height=height,
            image_sha256=hashlib.sha256(stored.bytes).hexdigest(),
            files={name: self._files(name, found) for name, found in others.items()},
        )

    def _caption(self, line: Line) -> str:
        """CaptionError for one that cannot be read, and, unless the job allows it, for none."""
        text = line.prompt
        if text is None and line.caption is not None:
            try:
                text = self._bytes(line.caption).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise CaptionError(f"{line.caption.name}: is not UTF-8: {error.reason}") from None
            except PictureError as error:
                raise CaptionError(str(error)) from None
        text = (text or "").strip()
        if not text and not self.job.allow_empty_captions:
            raise CaptionError("the row has no caption (allow_empty_captions takes it without)")
        return text

    def _files(
        self, name: str, found: Ref | tuple[Ref, ...] | None
    ) -> StoredFile | tuple[StoredFile, ...] | None:
        several = bool(self.job.found) and name in self.job.found.several  # type: ignore[union-attr]
        refs = found if isinstance(found, tuple) else () if found is None else (found,)
        try:
            stored = tuple(self._file(ref)[0] for ref in refs)
        except PictureError as error:
            raise PictureError(f"{name}: {error}") from None
        if found is None:
            return None
        return stored if several else stored[0]

    def _file(self, ref: Ref) -> tuple[StoredFile, tuple[int, int]]:
        """A file and its picture's width and height."""
        data = self._bytes(ref)
        size = size_of(data, ref.name)
        return StoredFile(bytes=data, path=shown(ref.path) if ref.path else None), size

    def _bytes(self, ref: Ref) -> bytes:
        if ref.bytes is not None:
            return ref.bytes
        if not ref.path:
            raise PictureError("has neither bytes nor a path")
        return self.roots.read(ref.path, ref.span)

    def write(self, file: BinaryIO, records: Written, passthrough: list[pa.Field]) -> int:
        """Put a shard's records, in this order, into a file; how many there were."""
        several = self.job.found.several if self.job.found else ()
        files = {name: name in several for name in self.job.file_keys if name != "image"}
        made = cast("Iterable[tuple[TrainingRecord, Carried]]", records)
        return write_training(file, made, files, passthrough)

    def beside(self, shard: Shard, wishes: Sequence[Wish]) -> Beside:  # noqa: ARG002
        """Pictures need no other files."""
        return ()
