"""The files of the LoRAs that rows name, from the places that are allowed."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from filelock import FileLock

from batch.errors import LoraError
from batch.roots import Folder, Store, patiently, root_of
from batch.web import shown
from flux_engine.request import LoraUse
from flux_engine.weights.lora.alphas import BESIDE, is_pefts
from schemas.lora import LoraEntry

CACHE_VARIABLE = "FLUXMILL_LORAS"
LARGEST = 16 * 2**30  # bytes of a LoRA file
BLOCK = 16 * 2**20


def cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/fluxmill/loras").expanduser()


def use_of(entry: LoraEntry, path: str | None) -> LoraUse:
    """What the engine is asked for; `path` is where the file lies on this machine."""
    return LoraUse(
        path=path,
        model_id=entry.model_id,
        origin_file_pattern=entry.origin_file_pattern,
        download_source=entry.download_source,
        scale=entry.scale,
        merged=entry.merged,
    )


class LoraFiles:
    """LoRAs that a job names come from anywhere; those of rows from the manifest's folder (the
    first place), from the other places of `lora_roots`, or by `model_id` from a hub."""

    def __init__(self, uris: Sequence[str]) -> None:
        self.uris = tuple(uris)
        self.roots = [root_of(uri) for uri in uris]

    def of_job(self, entry: LoraEntry) -> LoraUse:
        return use_of(entry, entry.path)

    def of_row(self, entry: LoraEntry) -> LoraUse:
        """LoraError if it lies in none of the places, or cannot be had."""
        return use_of(entry, None if entry.path is None else str(self._find(entry.path)))

    def _find(self, address: str) -> Path:
        absolute = "://" in address or address.startswith("/")
        for root in self.roots if absolute else self.roots[:1]:
            try:
                match root:
                    case Folder():
                        if root.find(address) is not None:  # a link's neighbours are its own
                            link = root.path / address.removeprefix("file://")
                            return self._local(link, address)
                    case Store():
                        if (place := root.find(address)) is not None:
                            return fetched(root, place)
                    case _:
                        pass  # web addresses are for pictures
            except OSError as error:
                raise LoraError(
                    f"{shown(address)}: cannot be read: {type(error).__name__}"
                ) from None
            except (ValueError, RuntimeError):  # null bytes; links in a circle
                raise LoraError(f"{shown(address)}: is no address of a LoRA") from None
        raise LoraError(
            f"{shown(address)}: lies outside the allowed places: {', '.join(self.uris)} "
            "(lora_roots adds one)"
        )

    def _local(self, place: Path, address: str) -> Path:
        if not place.exists():
            raise LoraError(f"{shown(address)}: there is no such file")
        return place


def fetched(root: Store, place: str) -> Path:
    """An object's copy on this machine's disk: fetched once, whoever asks, and again if it changed.

    Copies stay; they are named by address, size and time. PEFT's configuration comes along.
    """
    there = {place: patiently(lambda: root.fs.get_file_info(place))}
    if not there[place].is_file:
        raise LoraError(f"{place}: there is no such object")
    if is_pefts(PurePosixPath(place).name):
        beside = str(PurePosixPath(place).with_name(BESIDE))
        config = patiently(lambda: root.fs.get_file_info(beside))
        there = ({beside: config} if config.is_file else {}) | there
    stamp = root.uri
    for name, told in there.items():
        if told.size > LARGEST:
            raise LoraError(f"{name}: has {told.size} bytes; at most {LARGEST} are allowed")
        stamp += f"\n{name}\n{told.size}\n{told.mtime_ns}"
    folder = cache() / hashlib.sha256(stamp.encode()).hexdigest()[:24]
    copy = folder / PurePosixPath(place).name
    if copy.is_file():
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not copy.is_file():
            for name in there:  # the LoRA last: where it is, all is there
                brought(root, name, folder / PurePosixPath(name).name)
    return copy


def brought(root: Store, place: str, copy: Path) -> None:
    """One object's copy, which appears whole."""
    part = copy.with_name(f".{copy.name}.{os.getpid()}.part")

    def content() -> None:
        with root.fs.open_input_stream(place) as stream, part.open("wb") as file:
            shutil.copyfileobj(stream, file, BLOCK)

    patiently(content)
    part.replace(copy)
