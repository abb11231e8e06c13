"""A transformer and an autoencoder on a card that has too little memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flux_engine.encode import PictureCoder
from flux_engine.models.dit import FluxTransformer


class Watched:
    """A transformer that counts its table's makings, and has room for so many rows."""

    def __init__(self, dit: FluxTransformer, room: int = 1000) -> None:
        self.dit, self.room = dit, room
        self.tables, self.batches = 0, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dit, name)

    def modulate(self, c_BD: Tensor) -> Tensor:
        self.tables += 1
        return self.dit.modulate(c_BD)

    def __call__(self, x_BSC: Tensor, *rest: Tensor) -> Tensor:
        if len(x_BSC) > self.room:
            raise torch.OutOfMemoryError("no room on the card")
        self.batches.append(len(x_BSC))
        out: Tensor = self.dit(x_BSC, *rest)
        return out


class Crowded(PictureCoder):
    """Has room for so many pictures at once."""

    room = 1

    def _laid_out(self, filled: Sequence[Tensor]) -> Tensor:
        if len(filled) > self.room:
            raise torch.OutOfMemoryError("no room on the card")
        return super()._laid_out(filled)
