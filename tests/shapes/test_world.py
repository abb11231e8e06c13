"""What all worlds promise."""

import pytest
import torch

from shapes.recipe import ONE, TWO
from shapes.world import World, blocks, keyed

WORLDS = pytest.mark.parametrize("world", [ONE.world, TWO.world], ids=["one", "two"])


@WORLDS
def test_a_caption_names_every_attribute(world: World) -> None:
    rows = world.some(100, keyed("captions"))
    for row in rows:
        for template in range(len(world.templates)):
            read = world.parse(world.caption(row, template))
            assert read is not None
            assert torch.equal(read, row)


@WORLDS
def test_every_value_of_every_attribute_is_trained_on_and_held_out(world: World) -> None:
    rows = world.some(4000, keyed("values"))
    held = world.held_out(rows)
    assert 0.08 < held.float().mean() < 0.13
    for part in (rows[held], rows[~held]):
        assert tuple(len(column.unique()) for column in part.T) == world.counts


@WORLDS
def test_pictures_depend_on_nothing_but_the_key(world: World) -> None:
    rows = world.some(8, keyed("rows"))
    assert torch.equal(world.draw(rows, keyed("a", 1)), world.draw(rows, keyed("a", 1)))
    assert not torch.equal(world.draw(rows, keyed("a", 1)), world.draw(rows, keyed("a", 2)))


@WORLDS
def test_smaller_pictures_show_the_same(world: World) -> None:
    rows = world.some(4, keyed("rows"))
    small, masks = world.draw_masked(rows, keyed("a"), world.side // 2)
    assert small.shape[-2:] == masks.shape[-2:] == (world.side // 2,) * 2
    large = world.draw(rows, keyed("a"))
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert (small - shrunk).abs().mean() < 0.01


@WORLDS
def test_reserved_shapes_are_drawn_for_the_autoencoder_and_never_combined(world: World) -> None:
    assert not world.known(world.any_rows(200, keyed("any"))).all()
    assert world.known(world.some(200, keyed("some"))).all()


@WORLDS
def test_words_are_those_of_captions(world: World) -> None:
    text = world.caption(world.some(1, keyed("word"))[0], 0)
    assert set(text.split()) <= set(world.words())
    assert {"zorb", "flim", "quax", "mipo"} <= set(world.words())


def test_blocks_are_all_of_it_in_order() -> None:
    parts = blocks(torch.arange(7), 3)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), torch.arange(7))


def test_random_numbers_depend_on_the_key_alone() -> None:
    one, again, other = (torch.rand(2, generator=keyed(*key)) for key in ((1, "a"), (1, "a"), (2,)))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
