"""One folder on a disk or in an S3 bucket, in which files appear whole or not at all."""

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from batch.bucket import Bucket, Place
from batch.errors import StorageError

ATTEMPTS = "_run/tmp"
STALE_S = 24 * 3600.0
S3 = "s3://"
PIECE = 16 * 2**20  # bytes of a copy that are held at once


@dataclass(frozen=True)
class Attempt:
    """A file that is being written, and that nobody sees yet."""

    path: Path


class Storage:
    """Files by their name inside `uri`, a local path or an `s3://` address.

    StorageError for what asking again will not mend (a full disk, no permission), StorageDown for
    what it may.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        if "://" in uri and not uri.startswith((S3, "file://")):
            raise StorageError(
                f"{uri}: outputs are local folders or {S3} addresses; others cannot create a file "
                "only if it is absent"
            )
        self.fs, self.root = open_uri(uri)
        self.local = isinstance(self.fs, fs.LocalFileSystem)
        self.bucket = None if self.local else Bucket(uri)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def names(self, folder: str) -> list[str]:
        """Files directly in `folder`, sorted; none if there is no such folder."""
        if self.bucket:
            return self.bucket.names(folder)
        try:
            with os.scandir(self.path(folder)) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        return self.bucket.exists(name) if self.bucket else Path(self.path(name)).is_file()

    def open(self, name: str) -> pa.NativeFile:
        return self.fs.open_input_file(self.path(name))

    def read(self, name: str) -> bytes:
        return self.bucket.read(name) if self.bucket else Path(self.path(name)).read_bytes()

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
        folder = self._attempts()
        attempt = Attempt(folder / f"{uuid.uuid4().hex}.part")
        with told(self.uri, attempt.path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                yield attempt
            finally:
                attempt.path.unlink(missing_ok=True)

    def _attempts(self) -> Path:
        """Beside what is to be published; of a bucket, on this machine's own disk."""
        if self.bucket:
            return Path(tempfile.gettempdir()) / f"fluxmill-{os.getuid()}" / "attempts"
        return Path(self.path(ATTEMPTS))

    def publish(self, attempt: Attempt, name: str) -> bool:
        """Show what is in `attempt` under `name` unless that exists; whether it was we who did."""
        if self.bucket:
            return self.bucket.create(name, attempt.path)
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
        if self.bucket:
            self.bucket.put(name, bytes(memoryview(data)))
            return
        with self.attempt() as attempt:
            attempt.path.write_bytes(memoryview(data))
            if durable:
                sync(attempt.path)
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            attempt.path.replace(target)

    def replace_file(self, name: str, file: Path) -> None:
        """As `replace`, of a file's content, which need not fit into memory."""
        if self.bucket:
            self.bucket.upload(name, file)
            return
        with self.attempt() as attempt:
            shutil.copyfile(file, attempt.path)
            sync(attempt.path)
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            attempt.path.replace(target)

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """A folder on a local disk, to be filled and published; gone afterwards."""
        room = self._attempts()
        with told(self.uri, room):
            room.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=room) as folder:
                yield Path(folder) / "made"

    def replace_folder(self, name: str, made: Path, marks: Sequence[str]) -> None:
        """Publish a folder of a `workshop` in the place of one that may be there.

        On a disk by renaming. In a bucket file by file: those of `marks`, without which nobody
        takes the folder for whole, are taken away first and come last, in their order.
        """
        if not self.bucket:
            target, old = Path(self.path(name)), made.with_name("old")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(old)
            made.rename(target)
            return
        for mark in marks:
            self.bucket.delete(f"{name}/{mark}")
        self.bucket.delete_below(name)
        files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
        for file in (*sorted(files - {*marks}), *marks):
            self.bucket.upload(f"{name}/{file}", made / file)

    def download(self, name: str, file: Path) -> None:
        """Copy to a local disk, piece by piece; FileNotFoundError if it is not there."""
        with self.open(name) as source, file.open("wb") as out:
            shutil.copyfileobj(source, out, PIECE)

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        if self.bucket:
            self.bucket.delete(name)
        else:
            Path(self.path(name)).unlink(missing_ok=True)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in `folder`, sorted."""
        if self.bucket:
            return self.bucket.folders(folder)
        try:
            with os.scandir(self.path(folder)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except FileNotFoundError:
            return []

    def remove_folder(self, name: str) -> None:
        """Take away a folder and all that is below it, if it is there."""
        if self.bucket:
            self.bucket.delete_below(name)
            return
        with suppress(FileNotFoundError):
            self.fs.delete_dir(self.path(name))

    def sweep(self) -> None:
        """Remove attempts that a killed writer left behind a day ago or earlier."""
        folder = self._attempts()
        if not folder.is_dir():
            return
        for attempt in folder.iterdir():
            try:
                if time.time() - attempt.stat().st_mtime <= STALE_S:
                    continue
                if attempt.is_dir() and not attempt.is_symlink():  # a checkpoint's, a model's
                    shutil.rmtree(attempt)
                else:
                    attempt.unlink()
            except FileNotFoundError:  # another run sweeps, too
                continue


LASTING = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the disk can only be read",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EFBIG: "the file is too large",
    errno.EOPNOTSUPP: "the file system has no hard links",
    errno.ENOSYS: "the file system has no hard links",
}


@contextmanager
def told(uri: str, path: Path) -> Iterator[None]:
    """A disk's lasting faults as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in LASTING:
            why = LASTING[error.errno]
            raise StorageError(f"{uri}: cannot be written: {why} ({path.parent})") from None
        raise


def sync(path: Path) -> None:
    """Have a file's content on the disk before its name is."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or URI, and the path inside it without a trailing slash."""
    if uri.startswith(S3):
        place = Place.parse(uri)
        return place.file_system(), f"{place.bucket}/{place.path}".rstrip("/")
    if "://" in uri:
        file_system, path = fs.FileSystem.from_uri(uri)
        return file_system, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(uri).absolute())


def name_of(uri: str) -> str:
    """The last part of an address's path."""
    path = urlsplit(uri).path if "://" in uri else uri
    return path.rstrip("/").rpartition("/")[2]
