import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flux_engine.weights import fingerprint as ours
from flux_engine.weights.fingerprint import CACHE_VARIABLE, LARGE, digest, fingerprint
from tests.flux_engine.weights.watched import hashed

OLD = 1_700_000_000  # when it was written: long ago


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read whole; what is remembered lies below tmp_path."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "digests"))
    return hashed(monkeypatch, "_computed")


def large(folder: Path, name: str = "a.safetensors") -> Path:
    file = folder / name
    with file.open("wb") as raw:
        raw.truncate(LARGE + 3)
    os.utime(file, (OLD, OLD))
    return file


def change(file: Path, at: int, when: int) -> None:
    with file.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"x")
    os.utime(file, (when, when))


def whole(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_is_known_by_all_of_its_content(tmp_path: Path, reads: list[Path]) -> None:
    small, file = tmp_path / "small.safetensors", large(tmp_path)
    small.write_bytes(b"weights")
    assert fingerprint([small, file]) == {small.name: whole(small), file.name: whole(file)}
    before = digest(file)
    change(file, at=LARGE // 2, when=OLD + 1)  # where neither header nor ends are
    assert digest(file) == whole(file) != before


def test_a_large_file_is_read_once_as_long_as_it_stands(tmp_path: Path, reads: list[Path]) -> None:
    file = large(tmp_path)
    told = digest(file)
    assert [digest(file) for _ in range(3)] == [told] * 3
    assert len(reads) == 1
    other = large(tmp_path, "b.safetensors")
    change(other, at=7, when=OLD)
    other.replace(file)  # of the same name, size and time
    assert digest(file) == whole(file) != told
    assert len(reads) == 2


def test_what_changed_just_now_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    file = large(tmp_path)
    file.touch()
    assert digest(file) == digest(file)
    assert len(reads) == 2


def test_several_at_once_read_a_file_once(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, here = large(tmp_path), threading.Barrier(4)
    remembered = ours._remembered
    first = threading.local()

    def together(*asked: object) -> str | None:
        found = remembered(*asked)  # type: ignore[arg-type]
        if not hasattr(first, "passed"):
            first.passed = here.wait(10)
        return found

    monkeypatch.setattr(ours, "_remembered", together)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(digest, [file] * 4))) == 1
    assert len(reads) == 1


@pytest.mark.parametrize("there", ["in the way", "damaged"])
def test_without_a_memory_it_is_computed(there: str, tmp_path: Path, reads: list[Path]) -> None:
    file, cache = large(tmp_path), tmp_path / "digests"
    if there == "in the way":
        cache.write_text("a file")
    else:
        digest(file)
        (note,) = cache.glob("*.json")
        note.write_text("[]")
        reads.clear()
    assert digest(file) == whole(file)
    assert len(reads) == 1


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [tmp_path / folder / "model.safetensors" for folder in ("text_encoder", "vae")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"")
    assert set(fingerprint(files)) == {"text_encoder/model.safetensors", "vae/model.safetensors"}
