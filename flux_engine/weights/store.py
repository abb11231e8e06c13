"""The folder that downloads go to: one download on a machine, and none when the files are there.

<store>/<owner>/<name>/…                     the repository's files, under their own paths
<store>/<owner>/<name>/.fluxmill/<…>.json    what a pattern matched; complete when it says so
<store>/<owner>/<name>.lock                  held by whoever downloads; freed when a process dies
"""

import fnmatch
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from flux_engine.errors import SourceError
from flux_engine.weights.folder import SHARD
from flux_engine.weights.hub import (
    HubName,
    Remote,
    RepoKind,
    UndeliveredError,
    download,
    listing,
)

logger = logging.getLogger(__name__)

STORE_VARIABLE = "FLUXMILL_MODELS"
DATA_VARIABLE = "FLUXMILL_DATASETS"
OURS = ".fluxmill"
POLL = 0.1  # seconds between two looks at the lock
SHOWN = 40  # files of a listing in a message
CONFIGS = ("config.json", "adapter_config.json")  # say what a folder's weights are


@dataclass(frozen=True)
class Record:
    """What a pattern matched when the hub was asked, and whether all of it has arrived."""

    model_id: str
    pattern: str
    hub: str
    files: dict[str, int]
    beside: dict[str, int]
    complete: bool


def default_store() -> Path:
    return Path(os.environ.get(STORE_VARIABLE) or "~/.cache/fluxmill/models").expanduser()


def data_store() -> Path:
    return Path(os.environ.get(DATA_VARIABLE) or "~/.cache/fluxmill/datasets").expanduser()


def stored(
    model_id: str, pattern: str, hub: HubName, store: Path, kind: RepoKind = "model"
) -> tuple[Path, ...]:
    """The repository's files that match, brought here first if they are not all here."""
    folder = store / model_id
    found = complete(folder, pattern)
    if found:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock").acquire(poll_interval=POLL):
            return complete(folder, pattern) or _brought(model_id, pattern, hub, folder, kind)
    except (OSError, NotImplementedError) as error:  # the latter: a disk that has no file locks
        raise SourceError(
            f"{folder}: cannot be written or locked ({error}); "
            f"{STORE_VARIABLE if kind == 'model' else DATA_VARIABLE} names another folder for "
            "downloads"
        ) from error


def listed(folder: Path) -> str:
    """What lies in a folder, in words."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"{folder} has {_some(names)}"


def matches(path: str, pattern: str) -> bool:
    """As a shell's glob: a star stays within one folder, `**` does not, `a/` is all in `a`."""
    pattern += "*" * pattern.endswith("/")
    return _parts_match(PurePosixPath(path).parts, PurePosixPath(pattern).parts)


def _brought(
    model_id: str, pattern: str, hub: HubName, folder: Path, kind: RepoKind
) -> tuple[Path, ...]:
    what = f"{model_id} ({pattern})"
    try:
        remote = listing(hub, model_id, kind)
        files = {path: one for path, one in remote.items() if matches(path, pattern)}
        if not files:
            raise SourceError(f"{what}: nothing matches on {hub}; there is {_some(sorted(remote))}")
        folders = sorted({PurePosixPath(file).parent for file in files})
        beside = {
            path: remote[path]
            for path in (str(folder / name) for folder in folders for name in CONFIGS)
            if kind == "model" and path in remote and path not in files
        }
        record = Record(model_id, pattern, hub, _sizes(files), _sizes(beside), complete=False)
        _write(folder, record)
        logger.info("downloading", extra={"model_id": model_id, "pattern": pattern, "hub": hub})
        download(hub, model_id, files | beside, folder, kind)
    except UndeliveredError as failure:
        return _placed_by_hand(folder, pattern, f"{what} from {hub}: {failure}")
    wrong = _absent(folder, record)
    if wrong:
        raise SourceError(f"{what} from {hub}: came incomplete: {_some(wrong)}")
    _write(folder, Record(**{**asdict(record), "complete": True}))
    return _paths(folder, record)


def complete(folder: Path, pattern: str) -> tuple[Path, ...]:
    """What a pattern matched, if all of it has arrived; else nothing."""
    record = _read(folder, pattern)
    if record is None or not record.complete or _absent(folder, record):
        return ()
    return _paths(folder, record)


def _placed_by_hand(folder: Path, pattern: str, why: str) -> tuple[Path, ...]:
    """Files that someone else put where a download would: used when no hub can be asked."""
    places = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and OURS not in path.parts
    }
    found = [path for place, path in places.items() if matches(place, pattern)]
    record = _read(folder, pattern)  # of a download that was cut: it knows what belongs here
    short = bool(_absent(folder, record)) if record else not _all_shards(found)
    if short or not found:
        here = _some(sorted(places))
        raise SourceError(
            f"{why}. To do without the hub, place the files by hand under {folder}, with the "
            f"repository's own paths, or name them with `path`. There is {here}"
        )
    logger.warning("using files as found", extra={"folder": str(folder), "reason": why})
    return tuple(found)


def _all_shards(files: Iterable[Path]) -> bool:
    names = {file.name for file in files}
    shards = [shard for name in names if (shard := SHARD.fullmatch(name))]
    return all(
        f"{shard[1]}-{i:0{len(shard[2])}}-of-{shard[3]}.safetensors" in names
        for shard in shards
        for i in range(1, int(shard[3]) + 1)
    )


def _record_file(folder: Path, pattern: str) -> Path:
    name = hashlib.sha256(pattern.encode()).hexdigest()[:16]
    return folder / OURS / f"{name}.json"


def _read(folder: Path, pattern: str) -> Record | None:
    try:
        text = _record_file(folder, pattern).read_text(encoding="utf-8")
        return Record(**json.loads(text))
    except (OSError, ValueError, TypeError):  # absent, cut short, or of another version
        return None


def _write(folder: Path, record: Record) -> None:
    final = _record_file(folder, record.pattern)
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_suffix(".part")
    part.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    part.replace(final)


def _absent(folder: Path, record: Record) -> list[str]:
    """Files of the record that are not there in their size."""
    sizes = record.files | record.beside
    return [path for path in sizes if _size(folder / path) != sizes[path]]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sizes(files: dict[str, Remote]) -> dict[str, int]:
    return {path: remote.size for path, remote in files.items()}


def _paths(folder: Path, record: Record) -> tuple[Path, ...]:
    return tuple(sorted(folder / path for path in record.files))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _parts_match(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_parts_match(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return (
        bool(path)
        and fnmatch.fnmatchcase(path[0], pattern[0])
        and _parts_match(path[1:], pattern[1:])
    )
