from collections.abc import Iterator
from pathlib import Path

import pytest

from batch import roots
from batch.bucket import Bucket
from batch.errors import PictureDown, PictureError
from batch.roots import Folder, Roots, Store, root_of
from batch.web import WebRoot
from tests.batch.s3 import Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def test_an_address_says_what_kind_of_place_it_is(tmp_path: Path) -> None:
    assert isinstance(root_of(str(tmp_path)), Folder)
    assert isinstance(root_of(f"file://{tmp_path}"), Folder)
    assert isinstance(root_of("s3://bucket/a"), Store)
    assert isinstance(root_of("https://example.org/a"), WebRoot)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/other/a.png",
        "s3://bucket/m/../other/a.png",
        "s3://elsewhere/m/a.png",
        "../other/a.png",
        "gs://bucket/m/a.png",
        "/m/a.png",
    ],
)
def test_nothing_outside_a_bucket_s_folder_is_opened(server: Server, address: str) -> None:
    Bucket(server.uri("other")).put("a.png", b"secret")
    with pytest.raises(PictureError, match="outside the allowed places"):
        Roots([server.uri("m")]).read(address)


def test_pictures_in_a_bucket_are_read_with_its_own_options(server: Server) -> None:
    Bucket(server.uri("m")).put("in/a.png", b"here")
    places = Roots([server.uri("m")])
    assert places.read("in/a.png") == b"here"
    assert places.read("s3://bucket/m/in/a.png") == b"here"
    with pytest.raises(PictureError, match=r"in/b\.png: cannot be read: FileNotFoundError"):
        places.read("in/b.png")


def test_a_file_that_is_too_large_is_not_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bucket(server.uri("m")).put("in/large.png", b"x" * 101)
    (tmp_path / "large.png").write_bytes(b"x" * 101)
    monkeypatch.setattr(roots, "LARGEST", 100)
    for root, name in ((server.uri("m"), "in/large.png"), (str(tmp_path), "large.png")):
        with pytest.raises(PictureError, match="has 101 bytes; at most 100"):
            Roots([root]).read(name)


def test_an_address_that_is_none_is_refused_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="is no address of a picture"):
        Roots([str(tmp_path), "https://pictures.test/a"]).read("https://[::1/a/b.png")


def test_no_reason_repeats_a_password_or_a_key(tmp_path: Path) -> None:
    with pytest.raises(PictureError) as caught:
        Roots([str(tmp_path)]).read("https://me:hush@pictures.test/a.png?sig=hush")
    assert "hush" not in str(caught.value)
    assert "https://pictures.test/a.png" in str(caught.value)


def test_relative_addresses_are_the_first_root_s_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "a.png").write_bytes(b"two")
    places = Roots([str(tmp_path / "one"), str(tmp_path / "two")])
    with pytest.raises(PictureError, match="FileNotFoundError"):
        places.read("a.png")
    assert places.read(f"{tmp_path}/two/a.png") == b"two"
    with pytest.raises(PictureError, match="IsADirectoryError"):
        places.read(f"{tmp_path}/two")


def test_a_busy_store_is_asked_again(server: Server) -> None:
    Bucket(server.uri("busy")).put("a.png", b"red")
    store = Store(server.uri("busy"))
    server.fail(share=0.3, methods=["GET", "HEAD"], status=503, code="SlowDown")
    try:
        assert [store.read("bucket/busy/a.png") for _ in range(40)] == [b"red"] * 40
        assert server.served()["failed"] > 0
    finally:
        server.fail()


def test_only_what_asking_again_may_mend_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(roots.time, "sleep", waited.append)
    for words, pauses in (
        ("AWS Error ACCESS_DENIED during GetObject operation", 0),
        ("AWS Error SLOW_DOWN during GetObject operation", 3),
    ):
        waited.clear()

        def read(words: str = words) -> bytes:
            raise OSError(words)

        with pytest.raises(OSError, match=words):
            roots.patiently(read)
        assert len(waited) == pauses


def test_a_part_of_a_file_is_read_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    Bucket(server.uri("tars")).put("a.tar", b"0123456789")
    for place in (Roots((str(tmp_path),)), Roots((server.uri("tars"),))):
        assert place.read("a.tar", (3, 4)) == b"3456"
        assert place.read("a.tar", (3, 0)) == b""
        with pytest.raises(PictureError, match=r"ends before 12 bytes|cannot be read"):
            place.read("a.tar", (8, 4))


def test_of_a_file_of_many_only_the_part_has_to_be_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "LARGEST", 4)
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    assert Roots((str(tmp_path),)).read("a.tar", (3, 4)) == b"3456"
    with pytest.raises(PictureError, match="at most 4 are allowed"):
        Roots((str(tmp_path),)).read("a.tar")


def test_what_cannot_be_read_now_is_told_from_what_is_not_there(server: Server) -> None:
    Bucket(server.uri("m")).put("in/a.png", b"here")
    places = Roots([server.uri("m")])
    server.fail(share=1.0, methods=["GET", "HEAD"], status=403, code="AccessDenied")
    try:
        with pytest.raises(PictureDown, match=r"in/a\.png: cannot be read: "):
            places.read("in/a.png")
    finally:
        server.fail()
    with pytest.raises(PictureError, match=r"in/b\.png: cannot be read: ") as caught:
        places.read("in/b.png")
    assert not isinstance(caught.value, PictureDown)
