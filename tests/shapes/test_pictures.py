import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from shapes.dataset import open_picture, to_tensor
from shapes.pictures import chosen, write_pictures
from shapes.recipe import ONE
from shapes.ruler import score

WORLD = ONE.world


def test_pictures_show_what_their_captions_say_and_none_is_held_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.parquet", WORLD, 70)
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert len({row["key"] for row in rows}) == 70
    asked = torch.stack([WORLD.parse(row["prompt"]) for row in rows])  # type: ignore[misc]
    shown = [open_picture(tmp_path, row["image"]) for row in rows]
    pictures = torch.stack([to_tensor(one, WORLD.side) for one in shown if one is not None])
    assert score(WORLD, pictures, asked).all > 0.98
    assert not WORLD.held_out(asked).any()


def test_all_figures_may_have_one_reserved_shape() -> None:
    rows_NA, templates_N = chosen(WORLD, 32, 0, "zorb")
    captions = [WORLD.caption(row, int(t)) for row, t in zip(rows_NA, templates_N, strict=True)]
    assert all(" zorb" in caption for caption in captions)
    assert len(set(captions)) > 25
    with pytest.raises(ValueError, match="'circle': reserved words are zorb, flim, quax, mipo"):
        chosen(WORLD, 1, 0, "circle")


def test_the_same_arguments_make_the_same_file(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "shapes.pictures", str(tmp_path / "a.parquet"), "--rows", "5"]
    subprocess.run([*words, "--word", "flim", "--seed", "3"], check=True)
    write_pictures(tmp_path / "b.parquet", WORLD, 5, seed=3, word="flim")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
