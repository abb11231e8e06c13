"""Which weights these are: SHA-256 of whole files, computed once on a machine.

<folder>/<hash of the path>.json    a large file as it stood, and the SHA-256 that it had
<folder>/<hash of the path>.lock    held by whoever computes it
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "FLUXMILL_DIGESTS"
LARGE = 16 * 2**20  # bytes: smaller files are read again each time
SETTLED = 2e9  # nanoseconds: a file that has just changed may change again in the same tick
AT_ONCE = 4


@dataclass(frozen=True)
class Stamp:
    """A file as it stands."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> "Stamp":
        told = file.stat()
        return cls(told.st_size, told.st_mtime_ns, told.st_ino)


def cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/fluxmill/digests").expanduser()


def fingerprint(files: Iterable[Path]) -> dict[str, str]:
    """File name → SHA-256 of its content. A name that occurs twice is given with its folder."""
    return named(digests(files))


def digests(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, several at once."""
    files = list(dict.fromkeys(files))
    with ThreadPoolExecutor(AT_ONCE, "digests") as pool:
        return dict(zip(files, pool.map(digest, files), strict=True))


def named(digests: Mapping[Path, str]) -> dict[str, str]:
    seen = Counter(file.name for file in digests)
    return {
        file.name if seen[file.name] == 1 else f"{file.parent.name}/{file.name}": told
        for file, told in digests.items()
    }


def digest(file: Path) -> str:
    """SHA-256 of a file's content; of a large one that stands as it did, from memory."""
    file = file.resolve()
    if file.stat().st_size < LARGE:
        return _computed(file)
    note = cache() / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    if known := _remembered(note, Stamp.of(file)):
        return known
    with ExitStack() as held:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(note.with_suffix(".lock")))
        except (OSError, NotImplementedError) as error:
            logger.debug("digests are not remembered", extra={"why": str(error)})
        stamp = Stamp.of(file)
        if known := _remembered(note, stamp):  # by who had the lock before
            return known
        told = _computed(file)
        if Stamp.of(file) == stamp and time.time_ns() - stamp.mtime_ns > SETTLED:
            _remember(note, stamp, told)
        return told


def _computed(file: Path) -> str:
    with file.open("rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def _remembered(note: Path, stamp: Stamp) -> str | None:
    try:
        told = json.loads(note.read_text())
        return str(told["sha256"]) if told.items() >= asdict(stamp).items() else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # absent, or no note of ours
        return None


def _remember(note: Path, stamp: Stamp, told: str) -> None:
    part = note.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        part.write_text(json.dumps({**asdict(stamp), "sha256": told}))
        part.replace(note)
    except OSError as error:  # it is computed again next time
        logger.debug("digest not remembered", extra={"file": str(note), "why": str(error)})
