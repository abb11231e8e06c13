"""The columns of pictures with captions: which there are to be, and what they say of a size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batch.errors import ManifestError
from batch.manifest import Manifest, misfit
from batch.media import Size
from schemas.arrow import files_in
from schemas.records import TRAINING_SIZES

SIZES = TRAINING_SIZES[:2]  # width, height


@dataclass(frozen=True)
class Reject:
    """A row that no bucket has, and why."""

    number: int
    where: str
    key: str | None
    reason: str


def size_told(values: Mapping[str, Any]) -> Size | None:
    """What a row's columns say of its picture."""
    width, height = (values.get(name) for name in SIZES)
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        return None
    return width, height


def check(
    manifest: Manifest, keys: tuple[str, ...], prompt: str, leave_out: tuple[str, ...]
) -> list[str]:
    """The columns that are read, which all files have; ManifestError for one that is missing,
    mistyped, or holds files that nobody asked for."""
    first: list[str] | None = None
    for file in manifest.files:
        names = file.schema.names
        for name in (*keys, prompt, *leave_out):
            if name not in names:
                raise ManifestError(f"{file.path}: has no column {name!r}; it has {list(names)}")
        columns = [name for name in names if name not in leave_out]
        if first is not None and columns != first:
            raise ManifestError(
                f"{file.path}: has columns {', '.join(columns)}, and {manifest.files[0].path} "
                f"{', '.join(first)}"
            )
        first = columns
        for name in columns:
            kind = file.schema.field(name).type
            allowed = misfit("image", inner(kind)) if name in keys else None
            allowed = misfit("prompt", kind) if name == prompt else allowed
            if allowed:
                raise ManifestError(f"{file.path}: column {name!r} is {kind}; allowed is {allowed}")
            if name not in keys and (name in files_in(file.schema) or holds_files(kind)):
                raise ManifestError(
                    f"{file.path}: column {name!r} holds files, and is neither in file_keys nor in "
                    "leave_out"
                )
    return first or []


def inner(kind: pa.DataType) -> pa.DataType:
    """Of a list what is in it."""
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind


def holds_files(kind: pa.DataType) -> bool:
    kind = inner(kind)
    return bool(pa.types.is_struct(kind)) and {f.name for f in kind} == {"bytes", "path"}
