"""World one is what it was when the shipped model was trained."""

import hashlib

import torch

from shapes.figures import SHAPES
from shapes.recipe import ONE
from shapes.world import keyed

WORLD = ONE.world


def test_the_held_out_split_never_moves() -> None:
    held = WORLD.held_out(WORLD.combinations())
    assert len(held) == 2880
    assert int(held.sum()) == 318
    marks = hashlib.sha256(bytes(held.tolist())).hexdigest()
    assert marks.startswith("72c9c5c2412defac")


def test_a_caption_names_the_attributes() -> None:
    row = torch.tensor([0, 3, 2, 1, 1])
    assert [WORLD.caption(row, i) for i in range(len(WORLD.templates))] == [
        "a large red ring at the top right on a gray background",
        "a gray background with a large red ring in the top right.",
        "red ring, large, top right, gray background",
    ]


def test_reserved_shapes_go_by_their_nonsense_words() -> None:
    row = torch.tensor([0, len(SHAPES), 4, 0, 0])
    assert "zorb" in WORLD.caption(row, 0)


def test_reserved_shapes_are_told_apart_from_the_others() -> None:
    rows = WORLD.any_rows(600, keyed("nine"))
    reading = WORLD.read(WORLD.draw(rows, keyed("jitter")), rows)
    assert (reading.rows == rows).all(1).float().mean() >= 0.995


def test_case_punctuation_and_order_do_not_matter_to_the_parser() -> None:
    for text in (
        "A SMALL red Circle, at the TOP left; on a navy background!",
        "top left on navy: circle, red, small",
    ):
        read = WORLD.parse(text)
        assert read is not None
        assert read.tolist() == [0, 0, 0, 0, 2]


def test_a_prompt_that_names_less_is_not_read() -> None:
    assert WORLD.parse("a red circle") is None
    assert WORLD.parse("") is None
