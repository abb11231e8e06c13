"""Examinations ask the same questions every time."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from shapes.examination import Questions, contact_sheet
from shapes.recipe import ONE, TWO, Recipe


@pytest.mark.parametrize("recipe", [ONE, TWO])
def test_questions_are_fixed_and_on_the_right_side_of_the_split(recipe: Recipe) -> None:
    for unseen in (True, False):
        first, again = (Questions.pick(recipe, 20, unseen=unseen) for _ in range(2))
        assert torch.equal(first.noise, again.noise)
        assert first.captions == again.captions
        assert (recipe.world.held_out(first.rows) == unseen).all()
        for row, text in zip(first.rows, first.captions, strict=True):
            read = recipe.world.parse(text)
            assert read is not None
            assert torch.equal(read, row)


def test_there_are_no_more_questions_than_combinations() -> None:
    assert len(Questions.pick(ONE, 10_000, unseen=True).rows) == 318


def test_a_contact_sheet_has_a_line_for_each_row(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "sheet.png", torch.zeros(3, 3, 64, 64), torch.ones(3, 3, 64, 64))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (384, 256)
        assert sheet.getpixel((0, 0)) == (0, 0, 0)
        assert sheet.getpixel((0, 255)) == (255, 255, 255)
