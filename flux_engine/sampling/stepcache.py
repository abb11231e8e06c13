"""Steps that do without the blocks: what these did to the hidden values last time is added again.

Approximate, and off unless it is asked for. Which steps, is decided by the noise levels alone and
for the whole micro-batch with both sides of guidance: so a row's picture depends on no other row,
and neither side goes stale before the other.
"""

from torch import Tensor

from flux_engine.models.blocks import FinalLayer
from flux_engine.models.dit import FluxTransformer

FIRST, LAST = 3, 2  # steps at either end that are always computed


def reused(steps: int) -> frozenset[int]:
    """Numbers of the steps that repeat the one before: every second one of the middle."""
    return frozenset(range(FIRST, steps - LAST, 2))


class CachedTransformer:
    """A transformer that remembers what its blocks did to the image's hidden values."""

    def __init__(self, dit: FluxTransformer) -> None:
        self.dit = dit
        self._change_BSD: Tensor | None = None

    def __call__(
        self,
        x_BSC: Tensor,
        text_BTW: Tensor,
        rows_BMD: Tensor,
        rotation_2LR: Tensor,
        *,
        reuse: bool,
    ) -> Tensor:
        dit = self.dit
        img_BSD = dit.img_in(x_BSC)
        if reuse and self._change_BSD is not None:
            out_BSD = img_BSD + self._change_BSD
        else:
            out_BSD = dit.through_blocks(img_BSD, dit.txt_in(text_BTW), rows_BMD, rotation_2LR)
            self._change_BSD = out_BSD - img_BSD
        velocity: Tensor = dit.final_layer(out_BSD, rows_BMD[:, -FinalLayer.MODULATIONS :])
        return velocity
