"""A transformer, and the model around it, in the published layouts."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxSpec
from flux_engine.weights.folder import PICKLES, folder_sources
from flux_engine.weights.keymaps.layouts import prefix_of, recognise
from flux_engine.weights.keymaps.recipe import Recipe
from flux_engine.weights.keymaps.transformer import BFL, DIFFUSERS, transformer_recipes
from flux_engine.weights.reader import place, read_shapes
from flux_engine.weights.streamed import stream_tensors

SHARD_BYTES = 5 * 10**9
NAME, STEM = "flux1-trained", "diffusion_pytorch_model"
# what stands in a model's folder beside the transformer; a file or a folder
BESIDE = (
    *("ae.safetensors", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    *("scheduler", "sampling.json", "model_index.json", "transformer/config.json"),
)


def write_transformer(
    folder: Path,
    weights: Mapping[str, Tensor],
    spec: FluxSpec,
    *,
    layout: str = BFL,
    name: str = NAME,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """All weights, by our names, into `folder`: `name`.safetensors as Black Forest Labs publish
    it, or in `transformer/`, in shards with an index, as diffusers does.

    Each file appears whole or not at all, the index last.
    """
    if layout not in (BFL, DIFFUSERS):
        raise SettingError(f"layout is {layout!r}; allowed are {BFL!r} and {DIFFUSERS!r}")
    if not name.startswith("flux1-") or "/" in name:
        raise SettingError(f"name is {name!r}: a model's folder is opened by a name like {NAME}")
    words = {"format": "pt", **(metadata or {})}
    recipes = transformer_recipes(spec, layout)
    absent = sorted(set(recipes) ^ set(weights))
    if absent:
        raise SettingError(f"weights to write: {', '.join(absent)} on one side alone")
    shapes = {k: s for r in recipes.values() for k, s in zip(r.keys, r.shapes, strict=True)}
    owner = {key: name for name, recipe in recipes.items() for key in recipe.keys}

    def made(key: str) -> Tensor:
        recipe = recipes[owner[key]]
        return recipe.unmake(weights[owner[key]])[recipe.keys.index(key)]

    if layout == BFL:
        files = {folder / f"{name}.safetensors": list(shapes)}
    else:
        files = dict(shards(folder / "transformer", recipes, dtype, shard_bytes))
    for file, keys in files.items():
        one = {key: shapes[key] for key in keys}
        stream_tensors(file, one, made, dtype=dtype, metadata=words)
    if len(files) > 1:
        write_index(folder / "transformer", files, dtype, shapes)
    return tuple(files)


def shards(
    folder: Path, recipes: Mapping[str, Recipe], dtype: torch.dtype, most: int
) -> Iterator[tuple[Path, list[str]]]:
    """Files of at most so many bytes, if no one tensor is larger, and the keys in each."""
    groups: list[list[str]] = [[]]
    held = 0
    for recipe in recipes.values():
        for key, shape in zip(recipe.keys, recipe.shapes, strict=True):
            size = torch.Size(shape).numel() * dtype.itemsize
            if groups[-1] and held + size > most:
                groups.append([])
                held = 0
            groups[-1].append(key)
            held += size
    for n, keys in enumerate(groups, 1):
        number = f"-{n:05}-of-{len(groups):05}" if len(groups) > 1 else ""
        yield folder / f"{STEM}{number}.safetensors", keys


def write_index(
    folder: Path,
    files: Mapping[Path, list[str]],
    dtype: torch.dtype,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    index = {
        "metadata": {"total_size": total},
        "weight_map": {key: file.name for file, keys in files.items() for key in keys},
    }
    file = folder / f"{STEM}.safetensors.index.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(file)


def write_model(
    to: Path,
    source: Path,
    weights: Mapping[str, Tensor],
    spec: FluxSpec,
    *,
    name: str = NAME,
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A folder that is `source` but for its transformer, in the layout that it has there.

    All else is linked where the file system can, and copied where not. The folder appears whole or
    not at all; SettingError if it is there already.
    """
    files = folder_sources(source)
    shapes = read_shapes(files.transformer)
    prefix = prefix_of(shapes)
    where = place(files.transformer)
    layout = recognise((key.removeprefix(prefix) for key in shapes), where)
    if to.exists():
        raise SettingError(f"{to}: is there already")
    part = to.with_name(f".{to.name}.{os.getpid()}.part")
    try:
        read = {file for group in files.weights for file in group}
        for entry in BESIDE:
            take_over(source / entry, part / entry, read)
        write_transformer(
            part, weights, spec, layout=layout, name=name, dtype=dtype, metadata=metadata
        )
        part.rename(to)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return to


def take_over(there: Path, here: Path, read: set[Path]) -> None:
    """Link or copy a file or a folder; of weights only those that are read."""
    if there.is_dir():
        for child in sorted(there.iterdir()):
            take_over(child, here / child.name, read)
        return
    weights = there.suffix in (*PICKLES, ".safetensors", ".msgpack", ".h5", ".onnx")
    if not there.is_file() or (weights and there not in read):
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(there.resolve(), here)
    except OSError:
        shutil.copyfile(there, here)
