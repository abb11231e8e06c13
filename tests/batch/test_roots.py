from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.bucket import Bucket
from batch.errors import PictureError
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
    roots = Roots([server.uri("m")])
    assert roots.read("in/a.png") == b"here"
    assert roots.read("s3://bucket/m/in/a.png") == b"here"
    with pytest.raises(PictureError, match=r"in/b\.png: cannot be read: FileNotFoundError"):
        roots.read("in/b.png")


def test_relative_addresses_are_the_first_root_s_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "a.png").write_bytes(b"two")
    roots = Roots([str(tmp_path / "one"), str(tmp_path / "two")])
    with pytest.raises(PictureError, match="FileNotFoundError"):
        roots.read("a.png")
    assert roots.read(f"{tmp_path}/two/a.png") == b"two"
    with pytest.raises(PictureError, match="IsADirectoryError"):
        roots.read(f"{tmp_path}/two")
