"""Keys, prompts and pictures of a dataset that the main job has made.

Reads FOLDER/data/*.parquet: columns `key`, `prompt` and `image`, a struct of encoded `bytes` and
`path`.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

ROWS_AT_ONCE = 256


class Row(NamedTuple):
    """What a prompt became; `picture` is None where the column is null."""

    key: str
    prompt: str
    picture: Image.Image | None


def rows_of(folder: Path) -> Iterator[Row]:
    """All rows, shard after shard."""
    for shard in sorted((folder / "data").glob("*.parquet")):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["key", "prompt", "image"]):
                for row in batch.to_pylist():
                    yield Row(row["key"], row["prompt"], open_picture(folder, row["image"]))


def open_picture(folder: Path, image: dict[str, bytes | str | None] | None) -> Image.Image | None:
    match image:
        case {"bytes": bytes(data)}:
            source: io.BytesIO | Path = io.BytesIO(data)
        case {"path": str(path)}:
            source = folder / path
        case _:
            return None
    with Image.open(source) as opened:
        return opened.convert("RGB")


def to_tensor(picture: Image.Image, side: int) -> Tensor:
    """(3, side, side) in 0…1; a larger picture is averaged down."""
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
