"""One unit's weights: at home on the host, in a slot that it passes through, or on the card."""

from collections.abc import Mapping

import torch
from torch import Tensor

from flux_engine.vram.card import Card, Mark
from flux_engine.vram.store import Image, Layout
from flux_engine.vram.units import Unit


class Exact:
    """Other weights for a unit, made one image when they are copied and not before."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.layout = dict(tensors), Layout.of(tensors)

    def flat(self) -> Tensor:
        flat = torch.empty(self.layout.nbytes, dtype=torch.uint8)
        for key, view in self.layout.views(flat).items():
            view.copy_(self.tensors[key])
        return flat


class Seat:
    """Lets a model's own tensors point at the unit's bytes, wherever they are."""

    def __init__(self, model: str, unit: Unit, image: Image) -> None:
        self.model, self.unit, self.stored = model, unit, image
        self.name = f"{model}.{unit.name}"
        self.changed: Image | None = None
        self.exact: Exact | None = None
        self.here: Tensor | None = None  # its own memory on the card
        self._arriving: Mark = None
        self._views: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.hide()

    @property
    def source(self) -> Tensor:
        """The bytes in force."""
        if self.exact is not None:
            return self.exact.flat()
        return (self.changed or self.stored).flat

    @property
    def layout(self) -> Layout:
        return self.exact.layout if self.exact is not None else self.stored.layout

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes

    def show(self, flat: Tensor) -> None:
        """Let the model see its weights in these bytes."""
        pairs = self._views.get(flat.data_ptr())
        if pairs is None:
            views = self.layout.views(flat)
            pairs = [(self.unit.tensors[key], view) for key, view in views.items()]
            self._views[flat.data_ptr()] = pairs
        for tensor, view in pairs:
            tensor.data = view

    def hide(self) -> None:
        """Let the model see its weights at home."""
        if self.exact is None:
            for key, view in self.layout.views(self.source).items():
                self.unit.tensors[key].data = view

    def forget(self) -> None:
        """Hold on to no memory that it has passed through."""
        self._views.clear()

    def bring(self, card: Card) -> None:
        """Order it onto the card, into memory of its own."""
        if self.here is None:
            self.here = card.room(self.nbytes)
        self._arriving = card.copy(self.name, self.here, self.source, card.mark())
        self.show(self.here)

    def arrived(self, card: Card) -> None:
        """Computing that is ordered next finds it on the card."""
        if self._arriving is not None:
            card.wait(self.name, self._arriving)
            self._arriving = None

    def send_home(self, card: Card) -> None:
        """Give its memory on the card up; nothing is copied back."""
        self.arrived(card)
        self.hide()
        self.forget()
        self.here = None

    def exactly(self, tensors: Mapping[str, Tensor] | None, card: Card) -> None:
        """Pass through with these weights, which may be of other types; None: with its own."""
        if self.here is not None:
            self.send_home(card)
        self.forget()
        self.exact = None if tensors is None else Exact(tensors)
        self.hide()

    def change(self, tensors: Mapping[str, Tensor] | None, card: Card) -> None:
        """Other tensors in place of the stored ones; None: the stored ones again."""
        self.changed = None if tensors is None else self.stored.changed(tensors)
        if self.here is not None:
            self.arrived(card)
            self.bring(card)
            self.arrived(card)
        else:
            self.hide()
