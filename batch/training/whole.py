"""A transformer that was trained as a whole, written as a model that an engine opens."""

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
    with storage.workshop() as made:
        if source is None:
            write_transformer(made, weights, spec, dtype=dtype, metadata=words)
        else:
            write_model(made, source, weights, spec, dtype=dtype, metadata=words)
        storage.replace_folder(name, made, transformer_in(made))


def transformer_in(folder: Path) -> list[str]:
    """The files of a model's transformer, an index behind what it names."""
    files = (*folder.glob("flux1-*.safetensors"), *(folder / "transformer").glob("*.safetensors*"))
    names = (file.relative_to(folder).as_posix() for file in files)
    return sorted(names, key=lambda name: (name.endswith(".json"), name))
