"""One folder on a disk or an object store, in which files appear whole or not at all."""

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

ATTEMPTS = "_run/tmp"
STALE_S = 24 * 3600.0


@dataclass(frozen=True)
class Attempt:
    """A file that is being written, and that nobody sees yet."""

    path: Path


class Storage:
    """Files by their name inside `uri`, which is a local path or anything pyarrow can open."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.fs, self.root = open_uri(uri)
        self.local = isinstance(self.fs, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def names(self, folder: str) -> list[str]:
        """Files directly in `folder`, sorted; none if there is no such folder."""
        if self.local:
            try:
                with os.scandir(self.path(folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file())
            except FileNotFoundError:
                return []
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        found = self.fs.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == fs.FileType.File)

    def exists(self, name: str) -> bool:
        return bool(self.fs.get_file_info(self.path(name)).type == fs.FileType.File)

    def open(self, name: str) -> pa.NativeFile:
        return self.fs.open_input_file(self.path(name))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return bytes(file.read())

    def create(self, name: str, data: bytes | pa.Buffer) -> bool:
        """Publish `data` under `name` unless that exists; whether it was we who did."""
        if self.exists(name):
            return False
        with self.attempt() as attempt:
            attempt.path.write_bytes(memoryview(data))
            return self.publish(attempt, name)

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """A file on a local disk, to be filled and published; gone afterwards."""
        folder = Path(self.path(ATTEMPTS)) if self.local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        attempt = Attempt(folder / f"{uuid.uuid4().hex}.part")
        try:
            yield attempt
        finally:
            attempt.path.unlink(missing_ok=True)

    def publish(self, attempt: Attempt, name: str) -> bool:
        """Show what is in `attempt` under `name` unless that exists; whether it was we who did."""
        if not self.local:
            if self.exists(name):
                return False
            self._put(name, attempt.path.read_bytes())
            return True
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(attempt.path)
        try:
            os.link(attempt.path, target)
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes | pa.Buffer, *, durable: bool = True) -> None:
        """Publish `data` under `name`, in the place of what may be there. What is not durable may
        be torn when the machine falls."""
        if not self.local:
            self._put(name, data)
            return
        with self.attempt() as attempt:
            attempt.path.write_bytes(memoryview(data))
            if durable:
                sync(attempt.path)
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            attempt.path.replace(target)

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        if self.exists(name):
            self.fs.delete_file(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Take away a folder and all that is below it, if it is there."""
        with suppress(FileNotFoundError):
            self.fs.delete_dir(self.path(name))

    def sweep(self) -> None:
        """Remove attempts that a killed writer left behind a day ago or earlier."""
        folder = Path(self.path(ATTEMPTS))
        if not self.local or not folder.is_dir():
            return
        for attempt in folder.iterdir():
            try:
                if time.time() - attempt.stat().st_mtime > STALE_S:
                    attempt.unlink()
            except FileNotFoundError:  # another run sweeps, too
                continue

    def _put(self, name: str, data: bytes | pa.Buffer) -> None:
        # an object store shows an object only when its upload is complete
        with self.fs.open_output_stream(self.path(name)) as stream:
            stream.write(data)


def sync(path: Path) -> None:
    """Have a file's content on the disk before its name is."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or URI, and the path inside it without a trailing slash."""
    if "://" in uri:
        file_system, path = fs.FileSystem.from_uri(uri)
        return file_system, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(uri).absolute())
