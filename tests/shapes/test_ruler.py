"""The ruler reads what was drawn and written, and is not fooled by chance."""

import torch

from shapes.ruler import parse, score
from shapes.world import COUNTS, OUTLINES, TEMPLATES, caption, combinations, draw, keyed

ROWS = combinations()[torch.randperm(2880, generator=keyed("ruler"))[:960]]


def test_true_pictures_are_read_right() -> None:
    result = score(draw(ROWS, keyed("jitter")), ROWS)
    assert result.all >= 0.995
    assert min(result.by_attribute.values()) >= 0.995


def test_reserved_shapes_are_told_apart_from_the_others() -> None:
    counts = (COUNTS[0], len(OUTLINES), *COUNTS[2:])
    rows = torch.stack(
        [torch.randint(count, (600,), generator=keyed("nine", count)) for count in counts], dim=1
    )
    assert score(draw(rows, keyed("jitter")), rows).all >= 0.995


def test_pictures_of_eight_bits_are_read_right() -> None:
    pictures = (draw(ROWS, keyed("jitter")) * 255).round() / 255
    assert score(pictures, ROWS).all >= 0.995


def test_shuffled_captions_score_at_chance() -> None:
    shuffled = ROWS[torch.randperm(len(ROWS), generator=keyed("shuffled"))]
    result = score(draw(ROWS, keyed("jitter")), shuffled)
    assert result.all < 0.02
    for share, count in zip(result.by_attribute.values(), COUNTS, strict=True):
        assert abs(share - 1 / count) < 0.06


def test_an_empty_picture_and_noise_show_nothing() -> None:
    flat = torch.full((len(ROWS), 3, 64, 64), 0.03)
    noise = torch.rand(len(ROWS), 3, 64, 64, generator=keyed("noise"))
    assert score(flat, ROWS).all == 0
    assert score(noise, ROWS).all == 0


def test_captions_round_trip() -> None:
    for row in ROWS[:200]:
        for template in range(len(TEMPLATES)):
            read = parse(caption(row, template))
            assert read is not None
            assert read.tolist() == row.tolist()


def test_case_and_punctuation_do_not_matter_to_the_parser() -> None:
    read = parse("A SMALL red Circle, at the TOP left; on a navy background!")
    assert read is not None
    assert read.tolist() == [0, 0, 0, 0, 2]


def test_a_prompt_that_names_less_is_not_read() -> None:
    assert parse("a red circle") is None
    assert parse("") is None
