"""Pairs as pictures and a table, as DiffSynth-Studio's direct distillation reads them:
`OUT/metadata.csv` and `OUT/images/`.

That trainer draws the noise from `seed` and `rand_device`, in its own shape (1, Z, h, w), which
gives the same numbers, and unrolls the student with `num_inference_steps` and `cfg_scale`: these
are the student's, not the teacher's.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from batch.errors import ExportError
from batch.media import to_bytes
from batch.targets.dataset import Part, TargetRow
from batch.targets.export.folder import whole, write_index
from batch.targets.export.source import name_of, source
from batch.targets.identity import refuse_other
from flux_engine.assembly import choose_device, open_model
from flux_engine.encode import PictureCoder
from flux_engine.pictures import to_image
from flux_engine.weights.load import load_models, on_paper
from flux_engine.weights.source import ModelSource
from schemas.exports import DiffSynthExport

CARRIED: Mapping[str, tuple[Part, ...]] = {"pair": ("tensors",)}
COLUMNS = ("image", "prompt", "seed", "rand_device", "num_inference_steps", "cfg_scale")
IMAGES = "images"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export(address: str, out: Path, told: DiffSynthExport) -> int:
    """The dataset in a new folder `out`; how many rows there were."""
    rows = source(address, "diffsynth", CARRIED)
    coder = coder_of(told, rows.dataset.identity["vae"])
    with whole(out) as part:
        (part / IMAGES).mkdir()
        with (part / f"metadata.{told.table}").open("w", encoding="utf-8", newline="") as file:
            write = table(file, told)
            for _, numbers in rows.buckets():
                for some in pieces(numbers, told.decode_batch):
                    for row, picture in decoded(coder, list(rows.rows(some)), told.decode_batch):
                        image = f"{IMAGES}/{row.record.sample_id}.png"
                        (part / image).write_bytes(picture)
                        write(values_of(row, image, told))
        index = {"format": "diffsynth", "kind": rows.kind, "rows": len(rows.dataset)}
        write_index(part, index | {"identity": rows.dataset.identity})
    return len(rows.dataset)


def coder_of(told: DiffSynthExport, wanted: Mapping[str, Any]) -> PictureCoder:
    """The autoencoder that the dataset names; IdentityError for another one."""
    model = told.model
    sources = [ModelSource(**entry.source()) for entry in model if not isinstance(entry, str)]
    folder, groups = open_model(model if isinstance(model, str) else sources)
    mine = [folder.vae] if folder else [group for group in groups if "vae" in on_paper([group])]
    loaded = load_models(mine, dtype=DTYPES[wanted["dtype"]])
    if loaded.vae is None:
        raise ExportError(f"model {told.model}: has no autoencoder")
    found = {"weights": loaded.fingerprints["vae"]}
    refuse_other(found, {"weights": wanted["weights"]}, "autoencoder of model and of dataset")
    device = choose_device(told.device)
    return PictureCoder(loaded.vae.to(device), device, DTYPES[wanted["dtype"]])


def pieces(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def decoded(
    coder: PictureCoder, rows: Sequence[TargetRow], batch: int
) -> Iterator[tuple[TargetRow, bytes]]:
    pictures = coder.decode([row.tensors["latent"].float() for row in rows], batch, None)
    for row, picture in zip(rows, pictures, strict=True):
        if not torch.isfinite(picture).all():
            raise ExportError(f"{name_of(row)}: its picture came out as NaN or infinity")
        yield row, to_bytes(to_image(picture), "png", 0)


def values_of(row: TargetRow, image: str, told: DiffSynthExport) -> dict[str, Any]:
    values = (
        *(image, row.record.caption, row.record.seed, "cpu"),
        *(told.num_inference_steps, told.cfg_scale),
    )
    if told.table == "csv" and (found := read_back(row.record.caption)) != row.record.caption:
        raise ExportError(
            f"{name_of(row)}: its prompt {row.record.caption!r} would be read from a CSV file as "
            f"{found} ({type(found).__name__}): write the table as jsonl"
        )
    return dict(zip(COLUMNS, values, strict=True))


def read_back(prompt: str) -> Any:
    """A prompt as pandas reads it, which takes some words for numbers or for nothing."""
    import pandas as pd

    file = io.StringIO(newline="")
    csv.writer(file).writerows([["prompt"], [prompt]])
    file.seek(0)
    read = pd.read_csv(file, skip_blank_lines=False)["prompt"]
    return read.iloc[0] if len(read) else None


def table(file: TextIO, told: DiffSynthExport) -> Callable[[dict[str, Any]], object]:
    """Writes a row of the table."""
    if told.table == "jsonl":
        return lambda values: file.write(json.dumps(values, ensure_ascii=False) + "\n")
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    return writer.writerow
