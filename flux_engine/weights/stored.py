"""What a file says about its tensors before any of them is read."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch


class Stored(NamedTuple):
    """Shape and type of one tensor, as stored."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Shapes = Mapping[str, Stored]


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Stored]:
    """The same for tensors that are at hand, real or on the meta device."""
    return {key: Stored(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


def most_common(values: Iterable[int], default: int) -> int:
    """The size that most witnesses agree on (the first of equals), or `default` without any.

    One tensor of a wrong shape then does not make all the others look wrong.
    """
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(counts, key=counts.__getitem__, default=default)
