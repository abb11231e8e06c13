"""The ruler reads what was drawn, and is not fooled by chance."""

import torch

from shapes.recipe import ONE
from shapes.ruler import border, centroid, first_named, score
from shapes.world import keyed

WORLD = ONE.world
ROWS = WORLD.some(960, keyed("ruler"))


def test_true_pictures_are_read_right() -> None:
    result = score(WORLD, WORLD.draw(ROWS, keyed("jitter")), ROWS)
    assert result.all >= 0.995
    assert min(result.by_attribute.values()) >= 0.995


def test_pictures_of_eight_bits_are_read_right() -> None:
    pictures = (WORLD.draw(ROWS, keyed("jitter")) * 255).round() / 255
    assert score(WORLD, pictures, ROWS).all >= 0.995


def test_shuffled_captions_score_at_chance() -> None:
    shuffled = ROWS[torch.randperm(len(ROWS), generator=keyed("shuffled"))]
    result = score(WORLD, WORLD.draw(ROWS, keyed("jitter")), shuffled)
    assert result.all < 0.02
    for share, count in zip(result.by_attribute.values(), WORLD.counts, strict=True):
        assert abs(share - 1 / count) < 0.06


def test_an_empty_picture_and_noise_show_nothing() -> None:
    rows = ROWS[:256]
    flat = torch.full((len(rows), 3, 64, 64), 0.03)
    noise = torch.rand(len(rows), 3, 64, 64, generator=keyed("noise"))
    assert score(WORLD, flat, rows).all == 0
    assert score(WORLD, noise, rows).all == 0


def test_the_border_is_two_pixels_wide() -> None:
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 2:-2, 2:-2] = 1
    assert border(picture).max() == 0
    picture[..., 1, 1] = 1
    assert border(picture).max() == 1


def test_a_centroid_is_in_pixels_from_the_top_left() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:4, 5:7] = 1
    x, y = centroid(mask)
    assert (x.item(), y.item()) == (6.0, 3.0)


def test_the_longest_name_is_the_one_that_is_meant() -> None:
    places = ("top", "left", "top left")
    assert first_named("at the top left of it", places) == 2
    assert first_named("at the top of it", places) == 0
    assert first_named("atop", places) is None
