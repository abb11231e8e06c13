from pathlib import Path

import pytest

from batch.errors import OutputError
from batch.ingest.folder import FolderLister
from batch.ingest.lists import lists_of
from batch.storage import Storage
from schemas.ingest import FolderSource
from tests.batch.ingest.material import folder


def lister(place: Path) -> FolderLister:
    return FolderLister(FolderSource.parse({"kind": "folder", "path": str(place)}))


def test_what_is_new_is_listed_once(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {"a.png": "x", "a.txt": "a", "c.png": "x"})
    storage = Storage(str(tmp_path / "out"))
    first = lister(place)
    assert lists_of(storage).missing(first) == ["a.png", "c.png"]
    assert lists_of(storage).add(first, ["a.png", "c.png"])
    assert lists_of(storage).missing(lister(place)) == []
    folder(place, {"b.png": "x"})
    assert lists_of(storage).missing(lister(place)) == ["b.png"]


def test_of_two_that_list_at_once_one_is_first(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {"a.png": "x"})
    storage = Storage(str(tmp_path / "out"))
    one = other = lists_of(storage)
    assert one.add(lister(place), ["a.png"])
    assert not other.add(lister(place), ["a.png"])
    assert lists_of(storage).names == ("00000.parquet",)


def test_what_went_or_changed_since_it_was_listed_is_named(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {"a.png": "x", "b.png": "x"})
    storage = Storage(str(tmp_path / "out"))
    lists_of(storage).add(lister(place), ["a.png", "b.png"])
    folder(place, {"a.png": "longer"})
    with pytest.raises(OutputError, match=r"a\.png: changed since"):
        lists_of(storage).missing(lister(place))
    (place / "a.png").unlink()
    with pytest.raises(OutputError, match=r"a\.png: is there no more"):
        lists_of(storage).missing(lister(place))
