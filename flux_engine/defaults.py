"""Where a model's files are, and the sampling values that its folder asks for. No torch."""

import json
from pathlib import Path
from typing import Any

from flux_engine.errors import SourceError

BUNDLED = Path(__file__).parent / "bundled"
DEFAULTS = "sampling.json"


def bundled_names() -> list[str]:
    return sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir())


def model_folder(model: str) -> Path:
    """The folder of a bundled name or of a path; SourceError if it is neither."""
    bundled = BUNDLED / model
    folder = bundled if model in bundled_names() else Path(model).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"model {model!r}: is neither a folder nor a bundled name "
            f"({', '.join(bundled_names())})"
        )
    return folder


def folder_defaults(folder: Path) -> dict[str, Any]:
    """The content of `sampling.json`, or nothing where a folder has none."""
    path = folder / DEFAULTS
    return read_object(path) if path.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file; SourceError if it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path}: is not a JSON object")
    return values
