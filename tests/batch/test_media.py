import contextlib
import hashlib
import io
import os
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from batch import media
from batch.errors import PictureError
from batch.media import Pictures, decode, to_bytes
from flux_engine.pictures import to_image
from schemas.manifest import PictureRef


def png(size: tuple[int, int] = (32, 16), colour: str = "red", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "red.png").write_bytes(png())
    (tmp_path / "manifest" / "round.png").symlink_to("round.png")
    os.mkfifo(tmp_path / "manifest" / "pipe.png")
    (tmp_path / "secret.png").write_bytes(png())
    return Pictures((str(tmp_path / "manifest"),))


def test_bytes_relative_paths_and_uris_are_pictures(pictures: Pictures, tmp_path: Path) -> None:
    for ref in (
        PictureRef(bytes=png()),
        PictureRef(path="red.png"),
        PictureRef(path=f"{tmp_path}/manifest/red.png"),
        PictureRef(path=f"file://{tmp_path}/manifest/red.png"),
    ):
        picture = pictures.read(ref, height=16, width=32)
        assert picture.sha256 == hashlib.sha256(png()).hexdigest()
        x = picture.pixels
        assert x.shape == (3, 16, 32)
        assert x[:, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_a_picture_of_another_size_is_scaled_to_cover(pictures: Pictures) -> None:
    x = pictures.read(PictureRef(path="red.png"), height=64, width=48).pixels
    assert x.shape == (3, 64, 48)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("missing.png", "cannot be read: FileNotFoundError"),
        ("../secret.png", "outside the allowed places"),
        ("/etc/hostname", "outside the allowed places"),
        ("http://10.0.0.1/a.png", "outside the allowed places"),
        ("", "neither bytes nor a path"),
        ("a\0.png", "is no address of a picture"),
        ("round.png", "is no address of a picture"),
        ("pipe.png", "is no file"),
        ("x" * 5000, "cannot be read: OSError"),
    ],
)
def test_a_picture_that_cannot_be_had_says_why(pictures: Pictures, path: str, why: str) -> None:
    with pytest.raises(PictureError, match=why):
        pictures.read(PictureRef(path=path), height=16, width=16)


def test_a_link_out_of_the_folder_is_not_followed(pictures: Pictures, tmp_path: Path) -> None:
    (tmp_path / "manifest" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(PictureError, match="outside the allowed places"):
        pictures.read(PictureRef(path="link.png"), height=16, width=16)


def test_a_declared_root_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(png())
    wide = Pictures((str(tmp_path / "manifest"), str(tmp_path / "other")))
    x = wide.read(PictureRef(path=f"{tmp_path}/other/a.png"), 16, 16).pixels
    assert x.shape == (3, 16, 16)


@pytest.mark.parametrize("data", [b"", b"no picture", png()[:40], png()[: len(png()) // 2]])
def test_broken_bytes_are_no_picture(data: bytes) -> None:
    with pytest.raises(PictureError, match="is not a readable picture"):
        decode(data, "row 3", 16, 16)


def test_pictures_that_a_disk_has_garbled_are_no_more_than_that() -> None:
    dice = random.Random(3)
    for kind in media.FORMATS:
        out = io.BytesIO()
        Image.new("RGB", (32, 16), "red").save(out, kind)
        assert decode(out.getvalue(), "", 16, 16)[0].shape == (3, 16, 16)
        for _ in range(60):
            data = bytearray(out.getvalue())
            for _ in range(dice.randrange(1, 8)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            with contextlib.suppress(PictureError):
                decode(bytes(data[: dice.randrange(1, len(data) + 1)]), "", 16, 16)


def test_formats_whose_decoders_run_programs_are_not_opened() -> None:
    out = io.BytesIO()
    Image.new("RGB", (32, 16), "red").save(out, "EPS")
    with pytest.raises(PictureError, match="is not a readable picture of a known format"):
        decode(out.getvalue(), "row 3", 16, 16)


def test_the_same_bytes_get_the_same_reason() -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(PictureError) as caught:
            decode(b"no picture", "row 3", 16, 16)
        reasons.add(str(caught.value))
    assert reasons == {"row 3: is not a readable picture of a known format"}


def test_a_bomb_is_refused_before_it_unfolds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "LARGEST_PICTURE", 100)
    with pytest.raises(PictureError, match="has 32 × 16 pixels"):
        decode(png(), "row 3", 16, 16)


@pytest.mark.parametrize(("kind", "exact"), [("png", True), ("webp", True), ("jpeg", False)])
def test_a_picture_file_holds_what_was_painted(kind: str, exact: bool) -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16).expand(3, -1, -1)
    data = to_bytes(to_image(levels / 127.5 - 1.0), kind, quality=95)
    assert data == to_bytes(to_image(levels / 127.5 - 1.0), kind, quality=95)
    back = (decode(data, "", 16, 16)[0] + 1.0) * 127.5
    assert (back - levels).abs().max() < (1e-3 if exact else 8)
