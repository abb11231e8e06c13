"""A transformer that was trained as a whole, written as a model that an engine opens."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from batch.storage import Storage
from flux_engine.models.dit import FluxSpec
from flux_engine.weights.export import write_model, write_transformer


def write_whole(
    storage: Storage,
    name: str,
    source: Path | None,
    weights: Mapping[str, Tensor],
    spec: FluxSpec,
    *,
    dtype: torch.dtype,
    words: Mapping[str, str],
) -> None:
    """The folder `name`: the model's own folder but for its transformer, or, without a `source`,
    the transformer alone. In the place of one that may be there."""
    if storage.local:
        room = Path(storage.path("_run/tmp"))
        room.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=room if storage.local else None) as folder:
        made = Path(folder) / "model"
        if source is None:
            write_transformer(made, weights, spec, dtype=dtype, metadata=words)
        else:
            write_model(made, source, weights, spec, dtype=dtype, metadata=words)
        if not storage.local:
            storage.remove_folder(name)
            for file in sorted(path for path in made.rglob("*") if path.is_file()):
                place = f"{name}/{file.relative_to(made).as_posix()}"
                storage.replace(place, file.read_bytes())
            return
        target = Path(storage.path(name))
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
