import os
import threading
import time
from pathlib import Path

import pytest

from batch.storage import ATTEMPTS, STALE_S, Storage, open_uri


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
    storage.sweep()
    assert storage.names(ATTEMPTS) == ["new.part"]


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert Storage(str(tmp_path)).names("data") == []


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_path_and_its_uri_are_the_same_place(tmp_path: Path, prefix: str) -> None:
    file_system, path = open_uri(f"{prefix}{tmp_path}")
    assert (file_system.type_name, path) == ("local", str(tmp_path))
