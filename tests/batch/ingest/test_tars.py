from pathlib import Path

import pytest

from batch.errors import ManifestError
from batch.ingest.tars import LARGEST_TEXT, TarLister
from schemas.ingest import WebDatasetSource
from tests.batch.ingest.material import picture, tar


def lister(path: Path, **values: object) -> TarLister:
    told = {"kind": "webdataset", "path": str(path)}
    return TarLister(WebDatasetSource.parse(told | values))


def test_a_members_place_leads_to_its_bytes(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("0.png", picture()), ("0.txt", "a"), ("1.jpg", b"other")])
    told = lister(path)
    (first, second) = told.rows(["a.tar"])
    place = first["image"]
    data = path.read_bytes()
    assert data[place["offset"] : place["offset"] + place["size"]] == picture()
    assert (first["prompt"], second["prompt"]) == ("a", None)
    assert told.entries() == {"a.tar": str(path.stat().st_size)}


def test_a_member_that_has_no_column_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("0.png", b"x"), ("0.cls", "1")])
    with pytest.raises(ManifestError, match=r"a\.tar: 0 has a member \.cls"):
        lister(path).rows(["a.tar"])
    assert len(lister(path, ignore=["cls"]).rows(["a.tar"])) == 1


def test_only_words_that_are_used_are_read(tmp_path: Path) -> None:
    members = [("0.png", b"x"), ("0.json", "{"), ("1.png", b"x"), ("1.txt", "a" * LARGEST_TEXT * 2)]
    path = tar(tmp_path / "a.tar", members)
    first, second = lister(path).rows(["a.tar"])
    assert "cannot be read" in first["_fault"]
    assert "more than" in second["_fault"]
    first, second = lister(path, ignore=["json", "txt"]).rows(["a.tar"])
    assert "_fault" not in first
    assert second["prompt"] is None


def test_names_with_folders_and_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    members = [("x/0.png", b"x"), ("y/0.png", b"x"), ("v1.5/0.png", b"x"), ("v1.5/0.txt", "a")]
    tar(tmp_path / "deep" / "a.tar", members)
    keys = [row["key"] for row in lister(tmp_path).rows(["deep/a.tar"])]
    assert keys == ["deep/a/x/0", "deep/a/y/0", "deep/a/v1.5/0"]


def test_a_tar_that_is_cut_or_none_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("0.png", bytes(5000)), ("1.png", bytes(5000))])
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(ManifestError, match=r"a\.tar: is no whole tar"):
        lister(path).rows(["a.tar"])
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(ManifestError, match=r"a\.tar: is no whole tar"):
        lister(path).rows(["a.tar"])
    with pytest.raises(ManifestError, match=r"no \.tar file matches"):
        lister(tmp_path / "*.tgz")
