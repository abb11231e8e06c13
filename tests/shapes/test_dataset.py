"""Rows of a dataset come with their prompts, wherever their pictures lie."""

from pathlib import Path

import torch
from PIL import Image

from shapes.dataset import open_picture, rows_of, to_tensor
from tests.shapes.test_score import TEXTS, picture, write


def test_rows_come_in_the_order_of_the_shards_and_without_a_picture_if_they_have_none(
    tmp_path: Path,
) -> None:
    write(tmp_path, TEXTS, [*(picture(text) for text in TEXTS[1:]), None])
    rows = list(rows_of(tmp_path))
    assert [row.key for row in rows[:2]] == ["0-0", "0-1"]
    assert [row.prompt for row in rows] == TEXTS
    assert [row.picture is None for row in rows] == [False] * 23 + [True]


def test_a_picture_is_bytes_or_a_path_beside_the_data(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 51).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for image in ({"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}):
        opened = open_picture(tmp_path, image)  # type: ignore[arg-type]
        assert opened is not None
        assert opened.getpixel((0, 0)) == (51, 51, 51)
    assert open_picture(tmp_path, {"bytes": None, "path": None}) is None
    assert open_picture(tmp_path, None) is None


def test_a_larger_picture_is_averaged_down() -> None:
    striped = Image.new("RGB", (8, 8))
    striped.paste((255, 255, 255), (0, 0, 8, 4))
    tensor = to_tensor(striped, 4)
    assert tensor.shape == (3, 4, 4)
    assert torch.equal(tensor[:, :2], torch.ones(3, 2, 4))
    assert torch.equal(tensor[:, 2:], torch.zeros(3, 2, 4))
    assert torch.equal(to_tensor(striped, 1), torch.full((3, 1, 1), 128 / 255))
