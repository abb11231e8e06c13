"""Which rows a worker is at, on its machine's own disk, so that it can be read after its death."""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

STALE_S = 3600.0  # a driver asks for the crumb of a dead worker within seconds


def crumb_path(worker: str) -> Path:
    """Where the worker of this name leaves its crumb."""
    return Path(tempfile.gettempdir()) / f"fluxmill-{os.getuid()}" / "crumbs" / worker


class Crumb:
    """A small file that is overwritten in place: one line, the shard and the rows in progress.
    Locked as long as its worker lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(path.parent)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, shard: str, rows: Sequence[int]) -> None:
        """These rows are next. What stands behind the line's end is of an earlier, longer one."""
        line = json.dumps([shard, list(rows)]) + "\n"
        os.pwrite(self._file, line.encode(), 0)


def sweep(folder: Path) -> None:
    """Remove what ended workers left that nobody had to ask about, or whose driver had ended."""
    for crumb in folder.iterdir():
        with suppress(OSError):  # another worker sweeps, too; or its worker lives
            if time.time() - crumb.stat().st_mtime > STALE_S:
                with crumb.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    crumb.unlink()


def read_crumb(path: Path) -> tuple[str, list[int]] | None:
    """The shard and the rows that a worker was at, if it has left a crumb; takes the file away."""
    try:
        line = path.read_bytes().partition(b"\n")[0]
        path.unlink()
    except FileNotFoundError:
        return None
    if not line:
        return None
    shard, rows = json.loads(line)
    return shard, rows
