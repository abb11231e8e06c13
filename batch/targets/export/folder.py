"""A folder that appears whole or not at all."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batch.errors import ExportError
from batch.storage import sync

INDEX = "index.json"


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end; of a failure nothing stays. ExportError if
    there is something already."""
    if out.exists():
        raise ExportError(f"{out}: exists; choose another name, or take it away")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    part.mkdir()
    try:
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                sync(path)
        if out.exists():
            raise ExportError(f"{out}: has appeared meanwhile")
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_index(folder: Path, values: Mapping[str, Any]) -> None:
    """What stands in a folder, for its reader and for people."""
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
