"""Who made a dataset's targets: compared field by field, so that a reader can refuse others."""

from collections.abc import Iterator, Mapping
from typing import Any

from batch.errors import BatchError


class IdentityError(BatchError):
    """Targets of another teacher, encoder, type or layout than is wanted."""


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Fields in which two identities differ, each with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}):
            here = f"{path}.{name}" if path else name
            if name not in one or name not in other:
                there = one.get(name, other.get(name))
                yield f"{here} is {there!r} on one side only"
            else:
                yield from differences(one[name], other[name], here)
    elif one != other:
        yield f"{path} is {one!r} and {other!r}"


def refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """IdentityError that names every field which is not as wanted."""
    if faults := list(differences(found, wanted)):
        raise IdentityError(f"{where}: {'; '.join(faults)}")


def part_of(identity: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Of an identity, what `wanted` speaks of, at any depth."""
    out: dict[str, Any] = {}
    for name, value in wanted.items():
        if name not in identity:
            continue
        inner = identity[name]
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        out[name] = part_of(inner, value) if both else inner
    return out
