"""The places from which a job's pictures may come; nothing outside them is opened."""

import errno
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

from batch.errors import PictureDown, PictureError
from batch.storage import open_uri
from batch.web import WebRoot, shown

WEB = ("http://", "https://")
LARGEST = 256 * 2**20  # bytes of a picture file
PAUSES_S = (0.1, 0.4, 1.6)  # before a busy store is asked again
BUSY = (
    *("SERVICE_UNAVAILABLE", "SLOW_DOWN", "THROTTLING", "INTERNAL_FAILURE", "REQUEST_TIMEOUT"),
    *("NETWORK_CONNECTION", "UNKNOWN"),
)  # as pyarrow calls what S3 says

ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")
Span = tuple[int, int]  # offset and size


class Root(Protocol):
    """One place."""

    def find(self, address: str) -> str | None:
        """Where in it that is, or None if it lies elsewhere; a relative one starts here."""

    def read(self, place: str, span: Span | None = None) -> bytes:
        """All of it, or of a file that holds many the part at that offset and of that size; OSError
        or PictureError if it cannot be had."""


class Folder:
    """A folder on a disk; a link is followed, and judged by where it leads."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).resolve()

    def find(self, address: str) -> str | None:
        if "://" in address:
            scheme, _, address = address.partition("://")
            if scheme != "file":
                return None
        path = (self.path / address).resolve()
        return str(path) if path.is_relative_to(self.path) else None

    def read(self, place: str, span: Span | None = None) -> bytes:
        path = Path(place)
        if not path.is_dir() and not path.is_file() and path.exists():
            raise PictureError(f"{place}: is no file")  # a pipe would make us wait for ever
        check_size(place, span[1] if span else path.stat().st_size)
        if span is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(span[0])
            return file.read(span[1])


class Store:
    """A folder of an object store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.scheme, _, rest = uri.partition("://")
        self.path = PurePosixPath(rest.partition("?")[0])

    @cached_property
    def fs(self) -> fs.FileSystem:
        return open_uri(self.uri)[0]

    def find(self, address: str) -> str | None:
        scheme, absolute, rest = address.partition("://")
        if not absolute:
            if address.startswith("/"):
                return None
            path = self.path / address
        elif scheme == self.scheme:
            path = PurePosixPath(rest)
        else:
            return None
        outside = ".." in path.parts or not path.is_relative_to(self.path)
        return None if outside else str(path)

    def read(self, place: str, span: Span | None = None) -> bytes:
        def content() -> bytes:
            with self.fs.open_input_file(place) as file:
                check_size(place, span[1] if span else file.size())
                return bytes(file.read_at(span[1], span[0]) if span else file.read())

        return patiently(content)


def patiently(read: Callable[[], T]) -> T:
    """What `read` answers, asked again where a store is busy: its client gives up on some of the
    answers that it says it tries again."""
    for pause in PAUSES_S:
        try:
            return read()
        except OSError as error:
            if not any(f"AWS Error {word}" in str(error) for word in BUSY):
                raise
            time.sleep(pause)
    return read()


def is_absent(error: OSError) -> bool:
    """Whether there is no such file, as opposed to one that cannot be read now."""
    return isinstance(error, ABSENT) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)


def whole(data: bytes, span: Span | None, name: str) -> bytes:
    """PictureError for a part that its file ends within."""
    if span and len(data) != span[1]:
        raise PictureError(f"{name}: ends before {sum(span)} bytes")
    return data


def check_size(place: str, size: int) -> None:
    """PictureError for more than a worker should hold."""
    if size > LARGEST:
        raise PictureError(f"{place}: has {size} bytes; at most {LARGEST} are allowed")


def root_of(uri: str) -> Root:
    """The place that an address of `picture_roots` means."""
    if uri.startswith(WEB):
        return WebRoot(uri)
    if uri.startswith("file://"):
        return Folder(urlsplit(uri).path)
    return Store(uri) if "://" in uri else Folder(uri)


class Roots:
    """All of a job's places; the first is the manifest's own folder."""

    def __init__(self, uris: Sequence[str]) -> None:
        self.uris = tuple(uris)
        self.roots = [root_of(uri) for uri in uris]

    def read(self, address: str, span: Span | None = None) -> bytes:
        """PictureError if it lies in none of the places, or is not there; PictureDown if it cannot
        be read now."""
        name = shown(address)
        roots = self.roots if "://" in address or address.startswith("/") else self.roots[:1]
        for root in roots:
            try:
                if (place := root.find(address)) is not None:
                    return whole(root.read(place, span), span, name)
            except OSError as error:
                kind = PictureError if is_absent(error) else PictureDown
                raise kind(f"{name}: cannot be read: {type(error).__name__}") from None
            except (ValueError, RuntimeError):  # null bytes, broken brackets; links in a circle
                raise PictureError(f"{name}: is no address of a picture") from None
        raise PictureError(
            f"{name}: lies outside the allowed places: {', '.join(self.uris)} "
            "(picture_roots adds one)"
        )
