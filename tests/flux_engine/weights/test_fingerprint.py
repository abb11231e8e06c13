import hashlib
from pathlib import Path

from flux_engine.weights.fingerprint import MIB, WHOLE, fingerprint
from tests.flux_engine.weights.published import write_hollow


def changed(file: Path, at: int) -> None:
    with file.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"x")


def test_a_small_file_is_known_by_all_of_its_content(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    assert fingerprint([file]) == {"a.safetensors": hashlib.sha256(b"weights").hexdigest()}


def test_a_large_file_is_known_by_its_header_size_and_ends(tmp_path: Path) -> None:
    (file,) = write_hollow(tmp_path, "clip")
    size = file.stat().st_size
    assert size > WHOLE
    seen = {fingerprint([file])[file.name]}
    for at in (20, size - MIB // 2):
        changed(file, at)
        seen.add(fingerprint([file])[file.name])
    with file.open("r+b") as raw:
        raw.truncate(size + 1)
    seen.add(fingerprint([file])[file.name])
    assert len(seen) == 4


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [tmp_path / folder / "model.safetensors" for folder in ("text_encoder", "vae")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"")
    assert set(fingerprint(files)) == {"text_encoder/model.safetensors", "vae/model.safetensors"}
