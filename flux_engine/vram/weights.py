"""Models' weights at home: as they are stored, what takes their place, and eight bits undone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flux_engine.errors import SettingError
from flux_engine.models.fp8 import Fp8Linear, narrow_in, narrowed, widened
from flux_engine.vram.card import Card
from flux_engine.vram.seats import Seat
from flux_engine.vram.store import Image, in_memory
from flux_engine.vram.units import named_tensors, units_of

Images = Mapping[str, Mapping[str, Image]]

SCALE = ".weight_scale"


class Weights:
    """Models by name; with a card their weights lie in images, without one where they are."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        card: Card | None,
        images: Images | None,
        on_disk: frozenset[str] = frozenset(),
    ) -> None:
        self.models, self.card = dict(models), card
        self._seats: dict[str, list[Seat]] = {}
        self._instead: dict[str, dict[str, Tensor]] = {name: {} for name in self.models}
        self._plain: dict[str, dict[str, Tensor]] = {}
        for name, model in self.models.items():
            if card is None:
                self._plain[name] = {key: t.data for key, t in named_tensors(model).items()}
                continue
            units = units_of(model)
            homes = (images or {}).get(name) or in_memory(units)
            if name not in on_disk:
                homes = {key: _pinned(image, card) for key, image in homes.items()}
            self._seats[name] = [Seat(name, unit, homes[unit.name]) for unit in units]

    @property
    def images(self) -> Images:
        """Of all models, by unit."""
        return {
            name: {seat.unit.name: seat.stored for seat in seats}
            for name, seats in self._seats.items()
        }

    def quiet(self) -> None:
        """End what is under way on the card."""

    def vacate(self) -> None:
        """Send everybody home."""

    def override(self, model: str, tensors: Mapping[str, Tensor]) -> None:
        """Host tensors, by parameter name, that take the stored ones' place until `restore`.

        Of a layer that keeps eight bits they are the wide weights. The stored ones are not
        changed. With a card a copy is kept, and not what was given. SettingError for names, shapes
        or types that differ.
        """
        known = self._known(model)
        faults = [
            f"{key} ({_words(tensor)} for {known[key]})" if key in known else key
            for key, tensor in tensors.items()
            if known.get(key) != _words(tensor)
        ]
        if faults:
            raise SettingError(f"{model} has no such weights: {', '.join(sorted(faults))}")
        self._instead[model].update(tensors)
        self._renew(model, tensors)

    def by_unit(self, model: str, names: Iterable[str]) -> list[list[str]]:
        """Parameters in groups whose copies are made together."""
        groups: dict[str, list[str]] = {}
        for name in names:
            unit = "" if self.card is None else self._seat_of(model, name).name
            groups.setdefault(unit, []).append(name)
        return list(groups.values())

    def restore(self, model: str) -> None:
        """The stored weights again, bit for bit."""
        gone, self._instead[model] = self._instead[model], {}
        self._renew(model, gone)

    def stored(self, model: str, key: str) -> Tensor:
        """A stored parameter by name, on the host, whatever is in force; widened if need be."""
        weight, layer = self._at_home(model, key), self._layer(model, key)
        if layer is None:
            return weight
        return widened(weight, self._at_home(model, f"{key}_scale"), layer.computes)

    def _at_home(self, model: str, key: str) -> Tensor:
        if self.card is None:
            return self._plain[model][key]
        seat = self._seat_of(model, key)
        return seat.stored.layout.views(seat.stored.flat)[key]

    def _layer(self, model: str, key: str) -> Fp8Linear | None:
        """The layer that keeps this weight in eight bits, if one does."""
        name, _, last = key.rpartition(".")
        layer = self.models[model].get_submodule(name) if last == "weight" else None
        return layer if isinstance(layer, Fp8Linear) else None

    def _known(self, model: str) -> dict[str, str]:
        """Shape and type by parameter name, as they are without eight bits."""
        tensors = named_tensors(self.models[model])
        layers = dict(narrow_in(self.models[model]))
        known = {key: _words(t) for key, t in tensors.items() if not key.endswith(SCALE)}
        for name, layer in layers.items():
            shape, dtype = (layer.out_features, layer.in_features), layer.computes
            known[f"{name}.weight"] = _words(torch.empty(shape, dtype=dtype, device="meta"))
        return known

    def _in_force(self, model: str, key: str) -> Tensor:
        return self._kept(model, [key]).get(key, self._at_home(model, key))

    def _kept(self, model: str, keys: Iterable[str]) -> dict[str, Tensor]:
        """Those of these parameters that are overridden, as they are stored."""
        out: dict[str, Tensor] = {}
        instead = self._instead[model]
        for key, tensor in ((key, instead[key]) for key in keys if key in instead):
            if self._layer(model, key) is None:
                out[key] = tensor
            else:
                out[key], out[f"{key}_scale"] = narrowed(tensor)
        return out

    def _seat_of(self, model: str, key: str) -> Seat:
        return next(seat for seat in self._seats[model] if key in seat.unit.tensors)

    def _renew(self, model: str, keys: Mapping[str, Tensor]) -> None:
        if self.card is None:
            kept = self._kept(model, keys)
            tensors = named_tensors(self.models[model])
            for key in (k for name in keys for k in (name, f"{name}_scale") if k in tensors):
                tensors[key].data = kept.get(key, self._plain[model][key])
            return
        self.quiet()
        for seat in {self._seat_of(model, key) for key in keys}:
            seat.change(self._kept(model, seat.unit.tensors) or None, self.card)
            if seat.changed is not None:  # which has a copy: what was given need not be kept
                views = seat.changed.layout.views(seat.changed.flat)
                self._instead[model] |= {
                    key: view
                    for key, view in views.items()
                    if key in self._instead[model] and self._layer(model, key) is None
                }

    @contextmanager
    def exactly(
        self, model: str, wide: Callable[[], Mapping[str, Tensor]] | None
    ) -> Iterator[None]:
        """Inside, layers that keep eight bits compute with these weights, by parameter name.

        Everybody is sent home first, and the model's blocks have to pass through. Overrides stay
        in force. None: no layer keeps eight bits.
        """
        layers = dict(narrow_in(self.models[model])) if wide else {}
        self.vacate()
        try:
            if wide:
                found = {**wide(), **self._instead[model]}
                self._swap(
                    model, layers, {f"{name}.weight": found[f"{name}.weight"] for name in layers}
                )
            yield
        finally:
            self.vacate()
            self._swap(model, layers, None)

    def _swap(
        self, model: str, layers: Mapping[str, Fp8Linear], exact: Mapping[str, Tensor] | None
    ) -> None:
        for layer in layers.values():
            layer.exact = exact is not None
        if self.card is None:
            known = named_tensors(self.models[model])
            for name in layers:
                key = f"{name}.weight"
                known[key].data = self._in_force(model, key) if exact is None else exact[key]
            return
        for seat in self._seats[model]:
            own = {k: t.data for k, t in seat.unit.tensors.items() if not k.endswith(SCALE)}
            if exact is None:
                seat.exactly(None, self.card)
            elif not exact.keys().isdisjoint(own):
                seat.exactly(
                    {key: exact.get(key, tensor) for key, tensor in own.items()}, self.card
                )


def _pinned(image: Image, card: Card) -> Image:
    return Image(image.unit, image.layout, card.pin(image.flat))


def _words(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
