"""Which of the engine's models are on the card, phase by phase.

If all weights fit, all stay. If not, a phase brings in what it names and sends the others away;
frozen weights have their home on the host and are dropped from the card, never copied back.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flux_engine.errors import SettingError

GIB = 2**30
FOR_WEIGHTS = 0.75  # of the limit; the rest is for activations


def weight_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def fits(sizes: Mapping[str, int], limit: float) -> bool:
    """Whether all models can be on a card of `limit` bytes at once."""
    return sum(sizes.values()) <= limit * FOR_WEIGHTS


class Residency:
    """Models by name, their home on the host, and who is on `device` now.

    `vram_limit` is in GiB, negative meaning all of the card but so much; None is all that is free.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], device: torch.device, vram_limit: float | None = None
    ) -> None:
        self.models = dict(models)
        self.device = device
        self.sizes = {name: weight_bytes(model) for name, model in self.models.items()}
        self.limit = math.inf
        self._tensors = {name: named_tensors(model) for name, model in self.models.items()}
        self._stored = {
            name: {key: tensor.data for key, tensor in tensors.items()}
            for name, tensors in self._tensors.items()
        }
        self._instead: dict[str, dict[str, Tensor]] = {name: {} for name in self.models}
        self._here: set[str] = set()
        self.all_fit = True
        if device.type == "cpu":
            self._here = set(self.models)
            return
        sizes, limit = self.sizes, self._limit(vram_limit)
        self.limit, self.all_fit = limit, fits(sizes, limit)
        largest = max(sizes, key=lambda name: sizes[name])
        if sizes[largest] > limit:
            raise SettingError(
                f"{largest} needs {sizes[largest] / GIB:.1f} GiB of weights on the card and the "
                f"limit is {limit / GIB:.1f} GiB"
            )

    def _limit(self, vram_limit: float | None) -> float:
        free, total = torch.cuda.mem_get_info(self.device)
        if vram_limit is None:
            return float(free)
        asked = vram_limit * GIB if vram_limit >= 0 else total + vram_limit * GIB
        return float(min(asked, total))

    def fit(self, *names: str) -> bool:
        """Whether these can be on the card at once."""
        return fits({name: self.sizes[name] for name in names}, self.limit)

    @contextmanager
    def phase(self, *names: str) -> Iterator[None]:
        """Inside, the named models are on the device; leaving sends nobody away."""
        if self.device.type != "cpu":
            if not self.all_fit:
                for name in self._here - set(names):
                    self._send_home(name)
            for name in set(names) - self._here:
                self._bring(name)
        yield

    def override(self, model: str, tensors: Mapping[str, Tensor]) -> None:
        """Host tensors, by parameter name, that take the stored ones' place until `restore`.

        The stored ones are not changed. SettingError for names, shapes or types that differ.
        """
        stored = self._stored[model]
        faults = [
            f"{key} ({_words(tensor)} for {_words(stored[key])})" if key in stored else key
            for key, tensor in tensors.items()
            if key not in stored or _words(tensor) != _words(stored[key])
        ]
        if faults:
            raise SettingError(f"{model} has no such weights: {', '.join(sorted(faults))}")
        self._instead[model].update(tensors)
        self._renew(model, tensors)

    def restore(self, model: str) -> None:
        """The stored weights again, bit for bit."""
        gone, self._instead[model] = self._instead[model], {}
        self._renew(model, gone)

    def stored(self, model: str, key: str) -> Tensor:
        """A stored parameter by name, on the host, whatever is in force."""
        return self._stored[model][key]

    def _renew(self, model: str, keys: Iterable[str]) -> None:
        place = self.device if model in self._here else torch.device("cpu")
        for key in keys:
            self._tensors[model][key].data = self._in_force(model, key).to(place)

    def _in_force(self, model: str, key: str) -> Tensor:
        return self._instead[model].get(key, self._stored[model][key])

    def _bring(self, name: str) -> None:
        self._here.add(name)
        self._renew(name, self._stored[name])

    def _send_home(self, name: str) -> None:
        self._here.discard(name)
        self._renew(name, self._stored[name])


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return dict((*model.named_parameters(), *model.named_buffers()))


def _words(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
