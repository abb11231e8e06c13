"""The world is what it was when the model was trained."""

import hashlib

import pytest
import torch

from shapes.world import (
    COUNTS,
    OUTLINES,
    SHAPES,
    TEMPLATES,
    caption,
    combinations,
    coverage,
    draw,
    held_out,
    keyed,
)


def test_the_held_out_split_never_moves() -> None:
    held = held_out(combinations())
    assert len(held) == 2880
    assert int(held.sum()) == 318
    marks = hashlib.sha256(bytes(held.tolist())).hexdigest()
    assert marks.startswith("72c9c5c2412defac")


def test_every_value_of_every_attribute_is_trained_on() -> None:
    rows = combinations()
    trained = rows[~held_out(rows)]
    assert tuple(len(column.unique()) for column in trained.T) == COUNTS


def test_a_caption_names_the_attributes() -> None:
    row = torch.tensor([0, 3, 2, 1, 1])
    assert [caption(row, i) for i in range(len(TEMPLATES))] == [
        "a large red ring at the top right on a gray background",
        "a gray background with a large red ring in the top right.",
        "red ring, large, top right, gray background",
    ]


def test_reserved_shapes_go_by_their_nonsense_words() -> None:
    row = torch.tensor([0, len(SHAPES), 4, 0, 0])
    assert "zorb" in caption(row, 0)


def test_pictures_depend_on_nothing_but_the_key() -> None:
    rows = combinations()[::97]
    assert torch.equal(draw(rows, keyed("a", 1)), draw(rows, keyed("a", 1)))
    assert not torch.equal(draw(rows, keyed("a", 1)), draw(rows, keyed("a", 2)))


@pytest.mark.parametrize("outline", OUTLINES)
def test_an_outline_is_centred_on_its_centroid(outline: str) -> None:
    middle, radius = torch.tensor([32.0]), torch.tensor([11.0])
    mask = coverage(outline, middle, middle, radius)[0]
    pixels = torch.arange(64) + 0.5
    assert abs(((mask.sum(0) * pixels).sum() / mask.sum()).item() - 32) < 0.2
    assert abs(((mask.sum(1) * pixels).sum() / mask.sum()).item() - 32) < 0.2
