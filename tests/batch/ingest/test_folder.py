from pathlib import Path

import pytest

from batch.errors import ManifestError
from batch.ingest.folder import FolderLister
from schemas.ingest import FolderSource
from tests.batch.ingest.material import folder


def lister(place: Path, **values: object) -> FolderLister:
    return FolderLister(FolderSource.parse({"kind": "folder", "path": str(place)} | values))


def test_a_caption_belongs_to_the_picture_of_its_name(tmp_path: Path) -> None:
    files = {"a/1.png": "x", "a/1.txt": "one", "b/1.webp": "xy", "b/2.txt": "two", "c.JPEG": ""}
    told = lister(folder(tmp_path, files))
    assert told.entries() == {
        "a/1.png": "1/3", "b/1.webp": "2/-", "b/2.txt": "-/3", "c.JPEG": "0/-",
    }  # fmt: skip
    rows = {row["key"]: row for row in told.rows(["a/1.png", "b/1.webp", "b/2.txt"])}
    assert rows["a/1.png"]["_caption"]["path"] == "a/1.txt"
    assert rows["b/1.webp"]["_caption"] is None
    assert "without a picture" in rows["b/2.txt"]["_fault"]


def test_other_files_are_named_unless_they_are_ignored(tmp_path: Path) -> None:
    place = folder(tmp_path, {"a.png": "x", "notes/x.md": "", "b.csv": "", ".git/config": ""})
    with pytest.raises(
        ManifestError, match=r"neither pictures nor captions are b\.csv, notes/x\.md"
    ):
        lister(place)
    told = lister(place, ignore=[".*", "notes", "*.csv"])
    assert list(told.entries()) == ["a.png"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere: there is no such folder"):
        lister(tmp_path / "nowhere")
