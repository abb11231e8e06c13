"""How many pictures of a dataset show what their prompts ask: `python -m shapes.score OUTPUT_DIR`.

Reads OUTPUT_DIR/data/*.parquet, columns `prompt` and `image`, a struct of PNG `bytes` and `path`.
"""

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from shapes.ruler import Score, parse, score
from shapes.world import ATTRIBUTES, SHAPES, SIDE, held_out

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class DatasetScore:
    """Scores of all rows and of those whose combination was never trained on.

    A row without a picture is no mistake of the model: it is counted apart, as is a prompt
    that does not name all five attributes.
    """

    every: Score
    unseen: Score | None
    pictureless: int
    unreadable: int


def score_dataset(folder: Path) -> DatasetScore:
    """Score a dataset folder; raises ValueError if it holds nothing that can be scored."""
    pictures, asked, pictureless, unreadable = [], [], 0, 0
    for prompt, picture in rows_of(folder):
        row = parse(prompt)
        pictureless += picture is None
        unreadable += picture is not None and row is None
        if picture is not None and row is not None:
            pictures.append(picture)
            asked.append(row)
    if not pictures:
        raise ValueError(f"{folder / 'data'} holds no picture with a prompt of the shapes world")
    asked_N5, pictures_N3HW = torch.stack(asked), torch.stack(pictures)
    unseen_N = held_out(asked_N5) & (asked_N5[:, 1] < len(SHAPES))
    unseen = score(pictures_N3HW[unseen_N], asked_N5[unseen_N]) if unseen_N.any() else None
    return DatasetScore(score(pictures_N3HW, asked_N5), unseen, pictureless, unreadable)


def rows_of(folder: Path) -> Iterator[tuple[str, Tensor | None]]:
    """Prompt and picture, (3, 64, 64) in 0…1, of each row, shard after shard."""
    for shard in sorted((folder / "data").glob("*.parquet")):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["prompt", "image"]):
                for row in batch.to_pylist():
                    yield row["prompt"], open_picture(folder, row["image"])


def open_picture(folder: Path, image: dict[str, bytes | str | None] | None) -> Tensor | None:
    match image:
        case {"bytes": bytes(data)}:
            source: io.BytesIO | Path = io.BytesIO(data)
        case {"path": str(path)}:
            source = folder / path
        case _:
            return None
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def table(result: DatasetScore) -> str:
    """One readable block."""
    columns = [("all rows", result.every)]
    if result.unseen is not None:
        columns.append(("held out", result.unseen))
    lines = [f"{'':10}" + "".join(f"{title:>12}" for title, _ in columns)]
    lines.append(f"{'pictures':10}" + "".join(f"{one.count:>12}" for _, one in columns))
    for name in (*ATTRIBUTES, "all"):
        cells = ({**one.by_attribute, "all": one.all}[name] for _, one in columns)
        lines.append(f"{name:10}" + "".join(f"{cell:>11.1%} " for cell in cells).rstrip())
    if result.pictureless:
        lines.append(f"{result.pictureless} rows have no picture")
    if result.unreadable:
        lines.append(f"{result.unreadable} prompts do not name all five attributes")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a dataset of the shapes world.")
    parser.add_argument("folder", type=Path)
    print(table(score_dataset(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
