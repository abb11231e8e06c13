"""Pictures of a world with their captions: `python -m shapes.pictures OUT.parquet --rows 64`.

Columns `key`, `image` (a PNG) and `prompt`: what `jobs.train` and `jobs.distill` read. Held-out
combinations never come; with `--word zorb` all figures have that reserved shape. The same
arguments make the same file.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from shapes.recipe import recipe
from shapes.world import World, blocks, keyed

AT_ONCE = 64  # pictures drawn, and rows of a row group
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("prompt", pa.string()),
    ]
)


def chosen(world: World, count: int, seed: int, word: str | None = None) -> tuple[Tensor, Tensor]:
    """Attributes (N, A) and caption templates (N,); with `word`, of that reserved shape.

    ValueError for a word that is no reserved shape of the world.
    """
    random = keyed(seed, "pictures", word)
    rows = world.part(unseen=False)
    rows_NA = rows[torch.randint(len(rows), (count,), generator=random)]
    if word is not None:
        rows_NA = world.reshaped(rows_NA, word)
    return rows_NA, torch.randint(len(world.templates), (count,), generator=random)


def drawn(world: World, rows_NA: Tensor, templates_N: Tensor, seed: int) -> Iterator[pa.Table]:
    """The pictures of these rows, some at a time, in their order."""
    first = 0
    for i, rows in enumerate(blocks(rows_NA, AT_ONCE)):
        pictures = world.draw(rows, keyed(seed, "pictures", "jitter", i))
        lines = [
            {
                "key": f"{world.name}-{first + n:05}",
                "image": {"bytes": png(picture), "path": f"{first + n:05}.png"},
                "prompt": world.caption(row, int(templates_N[first + n])),
            }
            for n, (row, picture) in enumerate(zip(rows, pictures, strict=True))
        ]
        first += len(rows)
        yield pa.Table.from_pylist(lines, SCHEMA)


def png(picture_3HW: Tensor) -> bytes:
    out = io.BytesIO()
    pixels = (picture_3HW.permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_pictures(
    path: Path, world: World, count: int, *, seed: int = 0, word: str | None = None
) -> None:
    """One Parquet file, which appears whole."""
    rows_NA, templates_N = chosen(world, count, seed, word)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        for table in drawn(world, rows_NA, templates_N, seed):
            writer.write_table(table)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw captioned pictures of a world.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--word", help="a reserved shape that all figures have")
    parser.add_argument("--world", choices=("one", "two"), default="one")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    world = recipe(given.world).world
    write_pictures(given.path, world, given.rows, seed=given.seed, word=given.word)


if __name__ == "__main__":
    main()
