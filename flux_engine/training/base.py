"""The transformer that training begins with, and nothing else of its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flux_engine.assembly import Model, open_model
from flux_engine.defaults import model_folder
from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxTransformer
from flux_engine.weights.load import load_models, on_paper
from flux_engine.weights.reader import place


@dataclass(frozen=True)
class Base:
    """`folder` is the model's, if it was named by one; `fingerprint` says which files they were."""

    dit: FluxTransformer
    fingerprint: Mapping[str, str]
    files: tuple[Path, ...]
    folder: Path | None = None


def load_base(
    model: Model,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    axes_dim: Sequence[int] | None = None,
) -> Base:
    """Of a bundled name, a folder or files, as `load_engine` takes them; errors as there."""
    _, groups = open_model(model)
    found = [tuple(files) for files in groups if "dit" in on_paper([files], axes=axes_dim)]
    if len(found) != 1:
        named = "; ".join(place(files) for files in found) or "none"
        raise SettingError(f"one transformer is to be trained, and the model's files have: {named}")
    loaded = load_models(found, dtype=dtype, device=device, axes=axes_dim)
    assert loaded.dit is not None
    folder = model_folder(str(model)) if isinstance(model, str | Path) else None
    return Base(loaded.dit, loaded.fingerprint, found[0], folder)
