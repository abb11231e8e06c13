"""World two: two figures and a relation, told from either of them."""

import pytest
import torch

from shapes.recipe import TWO
from shapes.ruler import score
from shapes.world import keyed
from shapes.worlds.two import FIGURES, RELATION, RELATIONS, as_asked, turned, widest_gap

WORLD = TWO.world
ROWS = WORLD.some(400, keyed("two"))


def test_a_caption_names_both_figures_and_their_relation() -> None:
    row = torch.tensor([0, 3, 0, 0, 2, 4, 1, 1])
    assert [WORLD.caption(row, i) for i in range(len(WORLD.templates))] == [
        "a small red ring left of a large blue cross on a gray background",
        "a gray background with a small red ring left of a large blue cross.",
        "red ring, small, left of blue cross, large, gray background",
        "on a gray background, left of a large blue cross: a small red ring",
    ]


def test_a_prompt_in_other_words_is_not_read() -> None:
    assert WORLD.parse("a red ring and a blue cross") is None
    assert WORLD.parse("a small red circle at the top left on a black background") is None


def test_no_picture_has_two_figures_of_one_colour() -> None:
    for rows in (WORLD.combinations(), WORLD.any_rows(500, keyed("any"))):
        assert (rows[:, 0] != rows[:, 4]).all()


def test_a_picture_is_held_out_however_it_is_told() -> None:
    assert torch.equal(WORLD.held_out(ROWS), WORLD.held_out(turned(ROWS)))
    assert torch.equal(turned(turned(ROWS)), ROWS)
    assert torch.equal(WORLD.draw(ROWS[:8]), WORLD.draw(turned(ROWS[:8])))


@pytest.mark.parametrize("relation", range(4), ids=RELATIONS)
def test_figures_stand_as_the_caption_says(relation: int) -> None:
    row = torch.tensor([[3, 0, 1, relation, 2, 1, 1, 0]])  # yellow and blue on black
    picture = WORLD.draw(row)[0]
    pixels = torch.arange(128.0)
    yellow, blue = picture[0] > 0.5, picture[2] > 0.5
    x, y = (
        ((yellow.sum(axis) * pixels).sum() / yellow.sum()).item()
        - ((blue.sum(axis) * pixels).sum() / blue.sum()).item()
        for axis in (0, 1)
    )
    along, across = (x, y) if relation < 2 else (y, x)
    assert abs(across) < 1
    assert along < -40 if relation % 2 == 0 else along > 40


def test_true_pictures_are_read_right_in_eight_bits_too() -> None:
    pictures = WORLD.draw(ROWS, keyed("jitter"))
    result = score(WORLD, (pictures * 255).round() / 255, ROWS)
    assert result.all >= 0.995
    assert min(result.by_attribute.values()) >= 0.995


def test_a_blurred_and_noisy_picture_is_still_read() -> None:
    rows = ROWS[:100]
    blurred = torch.nn.functional.avg_pool2d(WORLD.draw(rows, keyed("jitter")), 3, 1, 1)
    blurred = blurred[..., 1:-1, 1:-1]
    blurred = torch.nn.functional.pad(blurred, (1, 1, 1, 1), mode="replicate")
    noise = 0.02 * torch.randn(blurred.shape, generator=keyed("noise"))
    assert score(WORLD, blurred + noise, rows).all >= 0.97


def test_shuffled_captions_score_at_chance() -> None:
    rows = ROWS[:200]
    shuffled = rows.roll(1, 0)
    result = score(WORLD, WORLD.draw(rows, keyed("jitter")), shuffled)
    assert result.all == 0
    # the ruler may tell a picture from either figure, and so may chance
    many = WORLD.some(20_000, keyed("chance"))
    chance = (as_asked(many, many.roll(1, 0)) == many.roll(1, 0)).float().mean(0).tolist()
    for share, expected in zip(result.by_attribute.values(), chance, strict=True):
        assert abs(share - expected) < 0.12


def test_the_wrong_order_is_a_wrong_relation() -> None:
    rows = ROWS[:40]
    opposite = rows.clone()
    opposite[:, RELATION] ^= 1
    result = score(WORLD, WORLD.draw(opposite, keyed("jitter")), rows)
    assert result.by_attribute["relation"] == 0
    assert all(result.by_attribute[WORLD.attributes[i]] >= 0.97 for i in FIGURES)
    assert result.all == 0


def test_an_empty_picture_one_figure_and_noise_show_nothing() -> None:
    rows = ROWS[:16]
    flat = torch.full((len(rows), 3, 128, 128), 0.03)
    noise = torch.rand(len(rows), 3, 128, 128, generator=keyed("noise"))
    single = WORLD.draw(rows)
    single[..., :60] = single[..., :1, :1]
    single[..., :60, :] = single[..., :1, :1]
    for pictures in (flat, noise, single):
        assert score(WORLD, pictures, rows).all == 0


def test_reserved_shapes_are_told_apart_from_the_others() -> None:
    rows = WORLD.any_rows(60, keyed("nine"))
    assert score(WORLD, WORLD.draw(rows, keyed("jitter")), rows).all >= 0.98


def test_a_cut_goes_through_the_middle_of_the_gap_and_not_beside_a_speck() -> None:
    lines = torch.tensor([[0, 5, 6, 0, 0, 0, 7, 5, 0, 0, 0, 0, 0, 0, 1], [0, 9, 9] + 12 * [0]])
    width, middle = widest_gap(lines)
    assert width.tolist() == [3, 0]
    assert middle[0].item() == 4.5
