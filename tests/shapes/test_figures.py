"""Figures cover what their names say."""

import pytest
import torch

from shapes.figures import OUTLINES, SHAPE_WORDS, cover, coverage


@pytest.mark.parametrize("outline", OUTLINES)
def test_an_outline_is_centred_on_its_centroid(outline: str) -> None:
    middle, radius = torch.tensor([32.0]), torch.tensor([11.0])
    mask = coverage(outline, middle, middle, radius, 64)[0]
    pixels = torch.arange(64) + 0.5
    assert abs(((mask.sum(0) * pixels).sum() / mask.sum()).item() - 32) < 0.2
    assert abs(((mask.sum(1) * pixels).sum() / mask.sum()).item() - 32) < 0.2


def test_each_figure_has_its_own_outline() -> None:
    which = torch.tensor([3, 0, 3])
    x, r = torch.tensor([8.0, 16.0, 24.0]), torch.tensor([5.0, 6.0, 7.0])
    together = cover(which, x, x, r, 32)
    for i, index in enumerate(which.tolist()):
        alone = coverage(OUTLINES[index], x[i, None], x[i, None], r[i, None], 32)[0]
        assert torch.equal(together[i], alone)


def test_every_outline_has_a_word() -> None:
    assert len(SHAPE_WORDS) == len(OUTLINES) == len(set(SHAPE_WORDS))
