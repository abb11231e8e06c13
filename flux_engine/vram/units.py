"""A model's weights in units: what is on the card together, because one module needs it.

`block`: one member of a stack that runs in order. `table`: a part's modulation layers, which run
before the loop. `rest`: everything else, on the card as long as the model is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Kind = Literal["rest", "block", "table"]

# stacks whose members run one after the other, in this order, each once a pass: of a transformer
# or control trunk, of T5, of CLIP under either of its names
STACKS = (
    "double_blocks",
    "single_blocks",
    "encoder.block",
    "text_model.encoder.layers",
    "encoder.layers",
)
MODULATIONS = frozenset({"img_mod", "txt_mod", "modulation", "adaLN_modulation"})
REST = "rest"


@dataclass(frozen=True)
class Unit:
    """Some tensors of a model by name, and the modules that may not be called without them."""

    name: str
    kind: Kind
    tensors: dict[str, Tensor]
    modules: tuple[nn.Module, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return dict((*model.named_parameters(), *model.named_buffers()))


def units_of(model: nn.Module) -> list[Unit]:
    """Every tensor in one unit: blocks and tables in the order in which they run, then the rest."""
    left = named_tensors(model)
    blocks = [
        Unit(name, "block", _taken(left, name, without=MODULATIONS), (module,))
        for name, module in _members(model)
    ]
    tables = list(_tables(model, left))
    units = [unit for unit in (*blocks, *tables) if unit.tensors]
    return [*units, Unit(REST, "rest", left)]


def _members(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for stack in STACKS:
        try:
            members = model.get_submodule(stack)
        except AttributeError:
            continue
        if isinstance(members, nn.ModuleList):
            yield from ((f"{stack}.{i}", member) for i, member in enumerate(members))


def _tables(model: nn.Module, left: dict[str, Tensor]) -> Iterator[Unit]:
    """One unit for each part that has rows in the table."""
    for name, part in model.named_modules():
        layers = {key: layer for key, layer in part.named_children() if key in MODULATIONS}
        if layers:
            prefix = f"{name}." if name else ""
            tensors = {k: t for key in layers for k, t in _taken(left, prefix + key).items()}
            yield Unit(f"{prefix}table", "table", tensors, tuple(layers.values()))


def _taken(
    left: dict[str, Tensor], name: str, without: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """Tensors below a name, which are taken out of `left`."""
    keys = [
        key
        for key in left
        if key.startswith(f"{name}.") and not without.intersection(key.split("."))
    ]
    return {key: left.pop(key) for key in keys}
