"""A dataset of a bucket, as a folder on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.errors import TargetsError
from batch.storage import Storage
from batch.targets.copy import cache, local
from batch.targets.dataset import TargetDataset
from tests.batch.s3 import Server, serving
from tests.batch.targets.made import Targets


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as served:
        yield served


def uploaded(folder: Path, uri: str) -> Storage:
    storage = Storage(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.replace(str(path.relative_to(folder)), path.read_bytes())
    return storage


def test_a_local_folder_is_its_own_copy(tmp_path: Path) -> None:
    assert local(str(tmp_path)) == tmp_path


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXMILL_TARGETS", str(tmp_path))
    assert cache() == tmp_path


def test_a_dataset_of_a_bucket_is_copied_once(
    server: Server, targets: Targets, tmp_path: Path
) -> None:
    uri = server.uri("once")
    uploaded(targets("pair"), uri)
    dataset = TargetDataset(uri, copies=tmp_path)
    assert [dataset[i].record for i in range(8)] == [
        row.record for row in (TargetDataset(targets("pair"))[i] for i in range(8))
    ]
    server.fail()
    TargetDataset(uri, copies=tmp_path)
    files = [path for path in dataset.told.root.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"manifest.json", ".lock"}
    assert not [path for path in files if path.suffix == ".part"]
    served = server.served()
    assert served.get("PUT", 0) == 0
    assert served.get("GET", 0) <= 4  # lists and the manifest


def test_what_changed_there_changes_here(server: Server, targets: Targets, tmp_path: Path) -> None:
    uri = server.uri("changes")
    storage = uploaded(targets("pair"), uri)
    copy = local(uri, tmp_path)
    victim = min((copy / "data").iterdir())
    storage.remove(f"data/{victim.name}")
    storage.replace(f"text/{min(p.name for p in (copy / 'text').iterdir())}", b"short")
    storage.remove("manifest.json")
    assert local(uri, tmp_path) == copy
    assert not victim.exists()
    assert min((copy / "text").iterdir()).read_bytes() == b"short"
    assert not (copy / "manifest.json").exists()


def test_an_empty_place_is_no_dataset(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="no target dataset"):
        TargetDataset(server.uri("nothing"), copies=tmp_path)
