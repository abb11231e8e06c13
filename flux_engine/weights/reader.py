"""Files of weights into shapes and tensors: the only door to the safetensors library."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flux_engine.errors import CheckpointError, SourceError
from flux_engine.weights.folder import PICKLES
from flux_engine.weights.stored import Stored
from flux_engine.weights.unpickled import SUFFIX, unpickled

LFS_POINTER = b"version https://git-lfs"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_shapes(files: Sequence[Path]) -> dict[str, Stored]:
    """Shape and type of every tensor of these files together; no tensor is read."""
    shapes: dict[str, Stored] = {}
    for file, opened, key in _entries(files):
        piece = opened.get_slice(key)
        kind = piece.get_dtype()
        dtype = kind if kind in DTYPES.values() else DTYPES.get(kind)
        if dtype is None:
            raise CheckpointError(str(file), reason=f"{key} has type {kind}")
        shapes[key] = Stored(tuple(piece.get_shape()), dtype)
    return shapes


def read_tensors(
    files: Sequence[Path], dtype: torch.dtype | None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """All tensors of these files together; floating point is cast to `dtype`, integers are not.

    None leaves all as they are stored. A tensor that is on the CPU and of the type wanted is a
    view of the mapped file.
    """
    tensors: dict[str, Tensor] = {}
    for _, opened, key in _entries(files, device):
        tensor: Tensor = opened.get_tensor(key)
        tensors[key] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The words that a file's writer left in its header."""
    with _opened(file, "cpu") as opened:
        return dict(opened.metadata() or {})


def place(files: Iterable[Path]) -> str:
    """These files in words, for messages."""
    first, *more = list(files) or [Path("no files")]
    return ", ".join([str(first), *(file.name for file in more)])


def _entries(
    files: Sequence[Path], device: torch.device | str = "cpu"
) -> Iterator[tuple[Path, Any, str]]:
    owners: dict[str, Path] = {}
    doubled: list[str] = []
    for file in files:
        with _opened(file, device) as opened:
            for key in opened.keys():  # noqa: SIM118  (not a mapping)
                if key in owners:
                    doubled.append(f"{key} (in {owners[key].name} and {file.name})")
                    continue
                owners[key] = file
                yield file, opened, key
    if doubled:
        raise CheckpointError(
            place(files), unexpected=doubled, reason="keys that several files hold"
        )


@contextmanager
def _opened(file: Path, device: torch.device | str) -> Iterator[Any]:
    if file.suffix in PICKLES and file.suffix != SUFFIX:
        raise SourceError(
            f"{file}: a pickle can run any code while it is loaded, so only safetensors files "
            "are read, and .bin by a reader that runs none; convert it, or name the .safetensors "
            "file of the same model"
        )
    if not file.is_file():
        raise SourceError(f"{file}: there is no such file")
    if file.suffix == SUFFIX:
        with unpickled(file, device) as pickled:
            yield pickled
        return
    try:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(file), reason=_why_unreadable(file, error)) from error


def _why_unreadable(file: Path, error: Exception) -> str:
    with file.open("rb") as raw:
        if raw.read(len(LFS_POINTER)) == LFS_POINTER:
            return "a git-lfs pointer, not the file itself (git lfs pull fetches it)"
    return f"unreadable or cut short ({file.stat().st_size} bytes): {error}"
