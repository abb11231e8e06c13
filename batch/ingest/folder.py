"""Pictures in a folder and those below it, with captions in .txt files beside them."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs

from batch.errors import ManifestError
from batch.ingest.lists import CAPTION, ENTRY, FAULT, FILE, STAMP, Rows, at
from batch.storage import open_uri
from schemas.ingest import FolderSource, Found

PICTURES = (*(".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm"),)
TEXT = ".txt"
SHOWN = 10


class FolderLister:
    """Entries are pictures, and captions without one."""

    def __init__(self, source: FolderSource) -> None:
        self.source, self.found = source, Found()
        self.sizes = sizes_below(source.path)
        pictures = [path for path in self.sizes if suffix(path) in PICTURES]
        texts = {path: path for path in self.sizes if suffix(path) == TEXT}
        strays = [
            path
            for path in self.sizes
            if suffix(path) not in (*PICTURES, TEXT) and not ignored(path, source.ignore)
        ]
        if strays:
            more = f" and {len(strays) - SHOWN} more" if strays[SHOWN:] else ""
            raise ManifestError(
                f"{source.path}: neither pictures nor captions are {', '.join(strays[:SHOWN])}"
                f"{more}; source.ignore names patterns of what else may lie there"
            )
        self.captions = {
            path: texts.get(str(PurePosixPath(path).with_suffix(TEXT))) for path in pictures
        }
        used = set(self.captions.values())
        self.lonely = [path for path in texts if path not in used]

    def entries(self) -> Mapping[str, str]:
        told = {
            path: f"{self.sizes[path]}/{self.sizes[text] if text else '-'}"
            for path, text in self.captions.items()
        }
        told |= {path: f"-/{self.sizes[path]}" for path in self.lonely}
        return {path: told[path] for path in sorted(told)}

    def rows(self, names: Sequence[str]) -> Rows:
        stamps = self.entries()
        out = []
        for path in names:
            row: dict[str, Any] = {ENTRY: path, STAMP: stamps[path], "key": path}
            text = self.captions.get(path)
            if path in self.captions:
                row |= {"image": at(path), CAPTION: at(text) if text else None}
            else:
                row |= {FAULT: "a caption without a picture of its name", CAPTION: at(path)}
            out.append(row)
        return out

    def fields(self) -> list[pa.Field]:
        return [pa.field("image", FILE)]


def suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def ignored(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits the path, or the name of the file or of a folder in it."""
    parts = PurePosixPath(path).parts
    return any(fnmatch(one, pattern) for one in (path, *parts) for pattern in patterns)


def sizes_below(uri: str) -> dict[str, int]:
    """Every file below a folder with its size, by its path in there, sorted."""
    try:
        file_system, base = open_uri(uri)
        if file_system.get_file_info(base).type != fs.FileType.Directory:
            raise ManifestError(f"source {uri}: there is no such folder")
        infos = file_system.get_file_info(fs.FileSelector(base, recursive=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(f"source {uri}: cannot be read: {error}") from None
    files = [info for info in infos if info.type == fs.FileType.File]
    sizes = {str(PurePosixPath(info.path).relative_to(base)): info.size for info in files}
    return dict(sorted(sizes.items()))
