"""A dataset of an object store as a folder on this machine."""

import hashlib
import logging
import os
import uuid
from pathlib import Path

from filelock import FileLock

from batch.output import DATA
from batch.storage import S3, Storage
from batch.targets.card import MANIFEST
from batch.targets.text import TEXT

CACHE_VARIABLE = "FLUXMILL_TARGETS"

logger = logging.getLogger(__name__)


def cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/fluxmill/targets").expanduser()


def local(address: str, folder: Path | None = None) -> Path:
    """A local folder itself; of an `s3://` address a copy, below `folder` or the cache, which is
    brought up to date: a file of the same name and size is taken to be the same."""
    if not address.startswith(S3):
        return Path(address.removeprefix("file://"))
    name = hashlib.blake2b(address.encode(), digest_size=12).hexdigest()
    copy = (folder or cache()) / name
    copy.mkdir(parents=True, exist_ok=True)
    with FileLock(copy / ".lock"):
        update(Storage(address), copy)
    return copy


def update(storage: Storage, copy: Path) -> None:
    """The manifest last, and gone meanwhile: a copy that has one is whole."""
    wanted = [f"{part}/{name}" for part in (DATA, TEXT) for name in storage.names(part)]
    for part in (DATA, TEXT):
        (copy / part).mkdir(exist_ok=True)
        for path in (copy / part).iterdir():
            if f"{part}/{path.name}" not in wanted:
                path.unlink()
    infos = storage.fs.get_file_info([storage.path(name) for name in wanted])
    sizes = {name: info.size for name, info in zip(wanted, infos, strict=True)}
    new = [name for name, size in sizes.items() if size_of(copy / name) != size]
    manifest = storage.read(MANIFEST) if storage.exists(MANIFEST) else None
    if not new and manifest is not None and read(copy / MANIFEST) == manifest:
        return
    (copy / MANIFEST).unlink(missing_ok=True)
    for name in new:
        fetch(storage, name, copy / name)
    if manifest is not None:
        part_file = copy / f".{uuid.uuid4().hex}.part"
        part_file.write_bytes(manifest)
        part_file.replace(copy / MANIFEST)
    logger.info("targets copied", extra={"files": len(new), "to": str(copy)})


def copy_texts(storage: Storage, folder: Path) -> Path:
    """The text table's files, below a folder."""
    for name in storage.names(TEXT):
        fetch(storage, f"{TEXT}/{name}", folder / name)
    return folder


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def fetch(storage: Storage, name: str, to: Path) -> None:
    """One file, which appears whole."""
    part = to.with_name(f".{uuid.uuid4().hex}.part")
    try:
        storage.download(name, part)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)
