"""Prompts of a world as a manifest: `python -m shapes.manifest OUT.parquet --rows 96`.

Columns `key` and `prompt`. The same arguments make the same file.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from shapes.recipe import recipe
from shapes.world import World, keyed


def spread(rows_NA: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows in which no value of an attribute is much commoner than another.

    Always the row whose values have been taken least often; a shuffled order breaks ties.
    """
    order = torch.randperm(len(rows_NA), generator=keyed(seed, "manifest", len(rows_NA)))
    rows_NA = rows_NA[order]
    taken = [torch.zeros(int(column.max()) + 1) for column in rows_NA.T]
    free = torch.ones(len(rows_NA), dtype=torch.bool)
    picked = []
    for _ in range(min(count, len(rows_NA))):
        # relative to the fair share, so that the two sizes weigh as much as the nine places
        cost = sum(
            (seen * len(seen))[column] for seen, column in zip(taken, rows_NA.T, strict=True)
        )
        assert isinstance(cost, Tensor)
        best = int(torch.where(free, cost, torch.inf).argmin())
        free[best] = False
        picked.append(best)
        for seen, value in zip(taken, rows_NA[best].tolist(), strict=True):
            seen[value] += 1
    return rows_NA[picked]


def prompts(world: World, count: int, unseen: int, seed: int = 0) -> list[str]:
    """Captions of `count` combinations, `unseen` of them never trained on, evenly mixed."""
    held, trained = world.part(unseen=True), world.part(unseen=False)
    chosen = torch.cat([spread(held, unseen, seed), spread(trained, count - unseen, seed)])
    if len(chosen) < count:
        raise ValueError(
            f"asked for {unseen} held-out and {count - unseen} other rows; the world has "
            f"{len(held)} and {len(trained)}"
        )
    mixed = chosen[torch.randperm(count, generator=keyed(seed, "order", count))]
    return [world.caption(row, i) for i, row in enumerate(mixed)]


def reserved_prompts(world: World, count: int, word: str, seed: int = 0) -> list[str]:
    """Captions of `count` different combinations with one reserved shape."""
    rows = torch.unique(world.reshaped(world.combinations(), word), dim=0)
    chosen = spread(rows, count, seed)
    if len(chosen) < count:
        raise ValueError(f"asked for {count} rows with {word}; the world has {len(rows)}")
    return [world.caption(row, i) for i, row in enumerate(chosen)]


def write_manifest(path: Path, texts: list[str], name: str = "demo") -> None:
    """One row a prompt; the keys are numbered."""
    keys = [f"{name}-{i:04}" for i in range(len(texts))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": keys, "prompt": texts}), path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write prompts of a world.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--held-out", type=int, help="rows never trained on; default: a third")
    parser.add_argument("--word", help="a reserved shape that all prompts name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="demo", help="what keys begin with")
    parser.add_argument("--world", choices=("one", "two"), default="one")
    given = parser.parse_args()
    world = recipe(given.world).world
    if given.word:
        texts = reserved_prompts(world, given.rows, given.word, given.seed)
    else:
        unseen = given.rows // 3 if given.held_out is None else given.held_out
        texts = prompts(world, given.rows, unseen, given.seed)
    write_manifest(given.path, texts, given.name)


if __name__ == "__main__":
    main()
