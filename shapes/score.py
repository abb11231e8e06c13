"""How many pictures of a dataset show what their prompts ask.

python -m shapes.score OUTPUT_DIR [--world one|two]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from shapes.dataset import rows_of, to_tensor
from shapes.recipe import recipe
from shapes.ruler import Score, score
from shapes.world import World


@dataclass(frozen=True)
class DatasetScore:
    """Scores of all rows and of those whose combination was never trained on.

    A row without a picture is no mistake of the model: it is counted apart, as is a prompt
    that does not name every attribute.
    """

    every: Score
    unseen: Score | None
    pictureless: int
    unreadable: int


def score_dataset(folder: Path, world: World) -> DatasetScore:
    """Score a dataset folder; raises ValueError if it holds nothing that can be scored."""
    pictures, asked, pictureless, unreadable = [], [], 0, 0
    for _, prompt, picture in rows_of(folder):
        row = world.parse(prompt)
        pictureless += picture is None
        unreadable += picture is not None and row is None
        if picture is not None and row is not None:
            pictures.append(to_tensor(picture, world.side))
            asked.append(row)
    if not pictures:
        raise ValueError(f"{folder / 'data'} holds no picture with a prompt of this world")
    asked_NA, pictures_N3HW = torch.stack(asked), torch.stack(pictures)
    unseen_N = world.held_out(asked_NA) & world.known(asked_NA)
    unseen = score(world, pictures_N3HW[unseen_N], asked_NA[unseen_N]) if unseen_N.any() else None
    return DatasetScore(score(world, pictures_N3HW, asked_NA), unseen, pictureless, unreadable)


def table(result: DatasetScore) -> str:
    """One readable block."""
    columns = [("all rows", result.every)]
    if result.unseen is not None:
        columns.append(("held out", result.unseen))
    lines = [f"{'':14}" + "".join(f"{title:>12}" for title, _ in columns)]
    lines.append(f"{'pictures':14}" + "".join(f"{one.count:>12}" for _, one in columns))
    for name in (*result.every.by_attribute, "all"):
        cells = ({**one.by_attribute, "all": one.all}[name] for _, one in columns)
        lines.append(f"{name:14}" + "".join(f"{cell:>11.1%} " for cell in cells).rstrip())
    if result.pictureless:
        lines.append(f"{result.pictureless} rows have no picture")
    if result.unreadable:
        lines.append(f"{result.unreadable} prompts do not name every attribute")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a dataset of a world.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--world", choices=("one", "two"), default="one")
    given = parser.parse_args()
    print(table(score_dataset(given.folder, recipe(given.world).world)))


if __name__ == "__main__":
    main()
