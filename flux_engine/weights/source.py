"""Where model files come from: a path on this machine, or a repository on a model hub."""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from flux_engine.errors import SettingError, SourceError
from flux_engine.weights.folder import PICKLES, chosen
from flux_engine.weights.hub import HUBS, HubName
from flux_engine.weights.store import complete, data_store, default_store, listed, stored

MODEL_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class ModelSource:
    """Either `path` (a file, a folder or a glob), or a repository and a glob over its files."""

    path: str | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    download_source: HubName = "modelscope"

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.model_id):
            raise SettingError(
                f"path is {self.path!r} and model_id is {self.model_id!r}: give exactly one of them"
            )
        if self.path:
            return
        if not MODEL_ID.fullmatch(self.model_id or ""):
            raise SettingError(f"model_id is {self.model_id!r}: it has the form owner/name")
        if not self.origin_file_pattern or ".." in self.origin_file_pattern.split("/"):
            raise SettingError(
                f"origin_file_pattern of {self.model_id} is {self.origin_file_pattern!r}: it names "
                "the files to take, such as flux1-dev.safetensors or text_encoder_2/*.safetensors"
            )
        if self.download_source not in HUBS:
            raise SettingError(
                f"download_source is {self.download_source!r}: allowed are {', '.join(HUBS)}"
            )


def fetch(source: ModelSource, store: Path | None = None) -> tuple[Path, ...]:
    """The source's files on this machine, sorted; downloaded into `store` unless they are there.

    Without `store` it is the folder named by FLUXMILL_MODELS, or ~/.cache/fluxmill/models.
    """
    if source.path:
        return _local(source.path)
    assert source.model_id
    assert source.origin_file_pattern
    return stored(
        source.model_id,
        source.origin_file_pattern,
        source.download_source,
        (store or default_store()).expanduser(),
    )


def fetch_dataset(
    dataset_id: str, pattern: str, hub: HubName, store: Path | None = None
) -> tuple[Path, tuple[Path, ...]]:
    """The folder of a hub's data set on this machine, and its files that match the pattern; brought
    below `store` (FLUXMILL_DATASETS, or ~/.cache/fluxmill/datasets) unless they are there."""
    root = (store or data_store()).expanduser()
    return root / dataset_id, stored(dataset_id, pattern, hub, root, "dataset")


def at_hand(source: ModelSource, store: Path | None = None) -> tuple[Path, ...]:
    """The source's files as far as they are on this machine whole; nothing is fetched."""
    if source.path:
        return _local(source.path)
    assert source.model_id
    assert source.origin_file_pattern
    folder = (store or default_store()).expanduser() / source.model_id
    return complete(folder, source.origin_file_pattern)


def _local(path: str) -> tuple[Path, ...]:
    here = Path(path).expanduser()
    if here.is_file():
        return (here,)
    if here.is_dir():
        files = tuple(sorted(file for file in here.iterdir() if file.is_file()))
        if not files:
            raise SourceError(f"{here}: no files here; {listed(here)}")
        return chosen(here) or tuple(file for file in files if file.suffix in PICKLES) or files
    found = tuple(
        sorted(
            file for name in glob.glob(str(here), recursive=True) if (file := Path(name)).is_file()
        )
    )
    if not found:
        parent = next(folder for folder in here.parents if folder.is_dir())
        raise SourceError(f"{path}: no such file; {listed(parent)}")
    return found
