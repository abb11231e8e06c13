"""Where a run stands, so that it can go on from there: folders that are whole or not there.

`_run/checkpoints/step-00000120/` holds what is trained, the optimizer's state and the average as
safetensors, all else as JSON, and a marker that is put there last. A folder without the marker is
what a writer left who fell, or one that is being written: readers pass it over.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.errors import OutputError
from batch.output import RUN, to_json
from batch.storage import Storage, sync
from flux_engine.training.stepper import TrainingState
from flux_engine.weights.reader import read_tensors
from flux_engine.weights.writer import write_tensors

FOLDER = f"{RUN}/checkpoints"
COMPLETE = "COMPLETE"
STATE = "state.json"
PARTS = ("trainable", "optimizer", "average")
VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps; `told` is what the run wants to know of itself."""

    step: int
    state: TrainingState
    told: Mapping[str, Any]


class Checkpoints:
    """A run's, in its output. One process writes, any number read."""

    def __init__(self, storage: Storage, keep: int = 2) -> None:
        self.storage, self.keep = storage, keep

    def steps(self) -> list[int]:
        """Steps of the whole ones, rising; torn ones are named in the log."""
        out = []
        for name in self.storage.folders(FOLDER):
            if not name.startswith("step-"):
                continue  # a temporary one of somebody who fell
            if self.storage.exists(f"{FOLDER}/{name}/{COMPLETE}"):
                out.append(int(name.removeprefix("step-")))
            else:
                logger.warning("torn checkpoint passed over", extra={"checkpoint": name})
        return sorted(out)

    def latest(self) -> Checkpoint | None:
        """The last whole one; a file that is not as it was written makes it none. Its tensors are
        read when they are used, and not to be changed."""
        for step in reversed(self.steps()):
            found = self._read(step)
            if found is not None:
                return found
        return None

    def last(self) -> int:
        """The step that a run would go on from; 0 for none. Files on a disk are read for it; a
        store proves its objects itself."""
        for step in reversed(self.steps()):
            if not self.storage.local or self._is_sound(folder_of(step)):
                return step
        return 0

    def write(self, checkpoint: Checkpoint) -> None:
        """Write it, and take away those that are too many. One that is there already stays, unless
        it is damaged; so do those of later steps, which a run that went on from an earlier one
        will come to."""
        name = folder_of(checkpoint.step)
        if not self._is_sound(name):
            with self.storage.workshop() as made:
                fill(made, checkpoint)
                self.storage.replace_folder(name, made, [COMPLETE])
            if self.storage.local:
                sync_folder(Path(self.storage.path(FOLDER)))
        for step in [step for step in self.steps() if step <= checkpoint.step][: -self.keep]:
            self._remove(step)

    def _remove(self, step: int) -> None:
        """The marker first, so that nobody takes what is half gone for whole."""
        self.storage.remove(f"{folder_of(step)}/{COMPLETE}")
        self.storage.remove_folder(folder_of(step))

    def _read(self, step: int) -> Checkpoint | None:
        name = folder_of(step)
        with tempfile.TemporaryDirectory() as folder:
            here = self._proved(name, Path(folder))
            if here is None:
                return None
            told = json.loads((here / STATE).read_text())
            if told["version"] != VERSION:
                raise OutputError(
                    f"{self.storage.uri}/{name}: has layout {told['version']}, and this reader "
                    f"knows {VERSION} alone"
                )
            # views of mapped files, which live on when a bucket's copies are taken away
            tensors = {part: read_tensors([here / f"{part}.safetensors"], None) for part in PARTS}
        state = TrainingState(told=told["optimizer"], **tensors)
        return Checkpoint(step, state, told["run"])

    def _is_sound(self, name: str) -> bool:
        """Whether there is one, and all its files are as they were written."""
        if not self.storage.exists(f"{name}/{COMPLETE}"):
            return False
        with tempfile.TemporaryDirectory() as folder:
            return self._proved(name, Path(folder)) is not None

    def _proved(self, name: str, folder: Path) -> Path | None:
        """Where its files are on this machine, in a bucket's case `folder`; None if one is not as
        it was written."""
        sums = json.loads(self.storage.read(f"{name}/{COMPLETE}"))
        here = Path(self.storage.path(name)) if self.storage.local else folder
        for file, wanted in sums.items():
            if not self._is_here(name, file, here) or sum_of(here / file) != wanted:
                logger.warning(
                    "damaged checkpoint passed over", extra={"checkpoint": name, "file": file}
                )
                return None
        return here

    def _is_here(self, name: str, file: str, folder: Path) -> bool:
        if self.storage.local:
            return (folder / file).is_file()
        if not self.storage.exists(f"{name}/{file}"):
            return False
        self.storage.download(f"{name}/{file}", folder / file)
        return True


def folder_of(step: int) -> str:
    return f"{FOLDER}/step-{step:08d}"


def fill(folder: Path, checkpoint: Checkpoint) -> None:
    """All files of a checkpoint, the marker with their sums last."""
    folder.mkdir(parents=True)
    state = checkpoint.state
    for part in PARTS:
        write_tensors(folder / f"{part}.safetensors", getattr(state, part), {"format": "pt"})
    told = {"version": VERSION, "optimizer": state.told, "run": dict(checkpoint.told)}
    (folder / STATE).write_bytes(to_json(told))
    sync(folder / STATE)
    files = [*(f"{part}.safetensors" for part in PARTS), STATE]
    (folder / COMPLETE).write_bytes(to_json({file: sum_of(folder / file) for file in files}))
    sync(folder / COMPLETE)
    sync_folder(folder)


def sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk."""
    with suppress(OSError):  # some file systems have no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
