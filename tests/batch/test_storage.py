import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.errors import StorageError
from batch.storage import ATTEMPTS, STALE_S, Storage, name_of, open_uri
from tests.batch.s3 import serving


def test_the_first_of_two_publishers_stands(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert storage.create("data/a", b"one")
    assert not storage.create("data/a", b"two")
    assert storage.read("data/a") == b"one"
    assert storage.names("data") == ["a"]


def test_of_many_publishers_at_once_one_wins_and_the_file_is_whole(tmp_path: Path) -> None:
    wins = []
    start = threading.Barrier(8)

    def publish(i: int) -> None:
        storage = Storage(str(tmp_path))
        start.wait()
        if storage.create("data/a", bytes([i]) * 100_000):
            wins.append(i)

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert Storage(str(tmp_path)).read("data/a") == bytes(wins) * 100_000


def test_nothing_is_left_of_an_attempt(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.create("data/a", b"one")
    storage.create("data/a", b"two")
    storage.replace("data/a", b"three")
    assert storage.read("data/a") == b"three"
    assert storage.names(ATTEMPTS) == []


def test_only_old_attempts_are_swept(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    folder = tmp_path / ATTEMPTS
    folder.mkdir(parents=True)
    (folder / "new.part").write_bytes(b"")
    (folder / "old.part").write_bytes(b"")
    old = time.time() - STALE_S - 60
    os.utime(folder / "old.part", (old, old))
    for name in ("old", "new"):  # of checkpoints
        (folder / name / "part").mkdir(parents=True)
        (folder / name / "part" / "state.json").write_bytes(b"{}")
    os.utime(folder / "old", (old, old))
    storage.sweep()
    assert storage.names(ATTEMPTS) == ["new.part"]
    assert storage.folders(ATTEMPTS) == ["new"]


def test_folders_are_listed_apart_from_files(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("parts/b/1", "parts/a/1", "parts/a/2", "parts/file"):
        storage.create(name, b"x")
    assert storage.folders("parts") == ["a", "b"]
    assert storage.folders("none") == []


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert Storage(str(tmp_path)).names("data") == []


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_path_and_its_uri_are_the_same_place(tmp_path: Path, prefix: str) -> None:
    file_system, path = open_uri(f"{prefix}{tmp_path}")
    assert (file_system.type_name, path) == ("local", str(tmp_path))


@pytest.mark.parametrize("size", [100, 10**6])
def test_a_disk_that_takes_no_more_is_said_and_nothing_is_half_there(
    tmp_path: Path, size: int
) -> None:
    storage = Storage(str(tmp_path))
    storage.create("data/a", b"whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    try:
        if size > 2**14:
            with pytest.raises(StorageError, match="cannot be written: the file is too large"):
                storage.create("data/b", b"x" * size)
            with pytest.raises(StorageError, match="cannot be written: the file is too large"):
                storage.replace("data/a", b"x" * size)
        else:
            storage.create("data/b", b"x" * size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert storage.read("data/a") == b"whole"
    assert storage.names(ATTEMPTS) == []
    assert storage.names("data") == (["a"] if size > 2**14 else ["a", "b"])


@pytest.mark.parametrize(("number", "why"), [(errno.ENOSPC, "the disk is full")])
def test_a_full_disk_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def full(file: int) -> None:
        raise OSError(number, os.strerror(number))

    storage = Storage(str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=f"cannot be written: {why}"):
        storage.create("data/a", b"one")
    assert storage.names("data") == storage.names(ATTEMPTS) == []


@pytest.mark.parametrize(
    ("uri", "name"),
    [("/a/b/", "b"), ("s3://b/c/a?scheme=http", "a"), ("/odd?name", "odd?name"), ("a", "a")],
)
def test_the_name_of_an_address_is_the_end_of_its_path(uri: str, name: str) -> None:
    assert name_of(uri) == name


@pytest.fixture(params=["disk", "bucket"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage(str(tmp_path / "out"))
        return
    with serving() as server:
        yield Storage(server.uri("out"))


def publish(storage: Storage, **files: str) -> None:
    with storage.workshop() as made:
        (made / "deep").mkdir(parents=True)
        for name, content in files.items():
            (made / "deep" / name).write_text(content)
        (made / "MARK").write_text("")
        storage.replace_folder("a/folder", made, ["MARK"])


def test_a_folder_takes_the_place_of_another(either: Storage) -> None:
    publish(either, one="1", two="2")
    publish(either, two="3")
    assert either.names("a/folder") == ["MARK"]
    assert either.names("a/folder/deep") == ["two"]
    assert either.read("a/folder/deep/two") == b"3"
    if either.local:
        assert either.folders(ATTEMPTS) == []


def test_a_folder_that_is_half_in_a_bucket_has_no_mark(tmp_path: Path) -> None:
    with serving() as server:
        storage = Storage(server.uri("out"))
        publish(storage, one="1")
        server.fail(share=1.0, methods=["PUT"], status=403, code="AccessDenied")
        with pytest.raises(StorageError, match=r"a/folder/deep/one cannot be written"):
            publish(storage, one="2")
        assert not storage.exists("a/folder/MARK")


def test_a_file_is_published_and_fetched_without_holding_it(
    either: Storage, tmp_path: Path
) -> None:
    for content in (b"1" * 100, b"2"):
        (tmp_path / "file").write_bytes(content)
        either.replace_file("a/file", tmp_path / "file")
        either.download("a/file", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        either.download("a/none", tmp_path / "copy")
