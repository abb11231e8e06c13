"""One folder on a disk or an object store, in which files appear whole or not at all."""

import os
import time
import uuid
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

ATTEMPTS = "_run/tmp"
STALE_S = 24 * 3600.0


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
        if not self.local:
            self._put(name, data)
            return True
        attempt = self._attempt(name, data)
        try:
            os.link(attempt, self.path(name))
        except FileExistsError:
            return False
        else:
            return True
        finally:
            attempt.unlink()

    def replace(self, name: str, data: bytes | pa.Buffer) -> None:
        """Publish `data` under `name`, in the place of what may be there."""
        if self.local:
            self._attempt(name, data).replace(self.path(name))
        else:
            self._put(name, data)

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        if self.exists(name):
            self.fs.delete_file(self.path(name))

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

    def _attempt(self, name: str, data: bytes | pa.Buffer) -> Path:
        attempt = Path(self.path(ATTEMPTS)) / f"{uuid.uuid4().hex}.part"
        for folder in (attempt.parent, Path(self.path(name)).parent):
            folder.mkdir(parents=True, exist_ok=True)
        with attempt.open("wb") as file:
            file.write(memoryview(data))
            file.flush()
            os.fsync(file.fileno())
        return attempt

    def _put(self, name: str, data: bytes | pa.Buffer) -> None:
        # an object store shows an object only when its upload is complete
        with self.fs.open_output_stream(self.path(name)) as stream:
            stream.write(data)


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or URI, and the path inside it without a trailing slash."""
    if "://" in uri:
        file_system, path = fs.FileSystem.from_uri(uri)
        return file_system, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(uri).absolute())
