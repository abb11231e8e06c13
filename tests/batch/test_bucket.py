import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch import bucket
from batch.bucket import Bucket, Place
from batch.errors import StorageDown, StorageError
from tests.batch.s3 import Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def place(server: Server, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    yield Bucket(server.uri(request.node.name.partition("[")[0]))
    server.fail()


def file_of(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def test_objects_have_names_below_an_address(place: Bucket) -> None:
    place.put("data/b", b"2")
    place.put("data/a", b"1")
    place.put("data/deep/er", b"3")
    assert place.names("data") == ["a", "b"]
    assert place.names("nowhere") == []
    assert place.folders("data") == ["deep"]
    assert (place.exists("data/a"), place.exists("data")) == (True, False)
    assert place.read("data/a") == b"1"
    place.delete("data/a")
    place.delete("data/a")
    place.delete_below("data/deep")
    assert place.names("data") == ["b"]
    assert place.names("data/deep") == []
    with pytest.raises(FileNotFoundError):
        place.read("data/a")


@pytest.mark.parametrize("part", [2**26, 5 * 2**20])
def test_of_many_that_create_one_wins_and_the_object_is_whole(
    place: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(bucket, "PART_BYTES", part)
    name, wins = f"one-{part}", []
    start = threading.Barrier(6)

    def create(i: int) -> None:
        path = tmp_path / str(i)
        path.write_bytes(bytes([i]) * 6 * 2**20)
        start.wait()
        if place.create(name, path):
            wins.append(i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert place.read(name) == bytes(wins) * 6 * 2**20
    uploads = place.client.list_multipart_uploads(Bucket=place.bucket)
    assert not uploads.get("Uploads")  # nothing is left of those who lost


@pytest.mark.parametrize(
    "fault", [{"status": 503, "code": "SlowDown"}, {"status": 500, "code": "InternalError"}]
)
def test_requests_that_fail_now_and_then_are_repeated(
    place: Bucket, server: Server, tmp_path: Path, fault: dict[str, object]
) -> None:
    server.fail(share=0.4, methods=["PUT", "HEAD", "GET", "DELETE"], **fault)
    for i in range(12):
        assert place.create(f"{fault['code']}/{i:02d}", file_of(tmp_path, bytes([i])))
        assert place.exists(f"{fault['code']}/{i:02d}")
    assert len(place.names(str(fault["code"]))) == 12
    assert server.served()["failed"] >= 5


def test_an_answer_that_is_lost_is_not_a_second_object(
    place: Bucket, server: Server, tmp_path: Path
) -> None:
    server.fail(share=0.5, methods=["PUT"], status=503, code="SlowDown", lost=True)
    for i in range(8):
        place.create(f"data/{i}", file_of(tmp_path, bytes([i])))  # may say that another was first
    server.fail()
    assert [place.read(f"data/{i}") for i in range(8)] == [bytes([i]) for i in range(8)]


def test_storage_that_stays_away_is_down(
    place: Bucket, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 2)
    hasty = Bucket(place.uri)
    server.fail(share=1.0, methods=["PUT"], status=503, code="ServiceUnavailable")
    with pytest.raises(StorageDown, match="data/a cannot be written: ServiceUnavailable"):
        hasty.create("data/a", file_of(tmp_path, b""))
    nobody = Bucket("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http")
    with pytest.raises(StorageDown, match=r"a cannot be looked for: .*127\.0\.0\.1:9"):
        nobody.exists("a")


@pytest.mark.parametrize("code", ["ExpiredToken", "AccessDenied", "NoSuchBucket", "QuotaExceeded"])
def test_what_asking_again_will_not_mend_is_said_at_once(
    place: Bucket, server: Server, tmp_path: Path, code: str
) -> None:
    server.fail(share=1.0, methods=["PUT"], status=403, code=code)
    with pytest.raises(StorageError, match=f"data/a cannot be written: {code}: as it was told"):
        place.create("data/a", file_of(tmp_path, b""))
    assert server.served()["PUT"] == 1


def test_without_credentials_the_error_says_so(
    place: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="Unable to locate credentials"):
        Bucket(place.uri).put("a", b"")


def test_an_address_says_where_and_the_environment_what_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert Place.parse("s3://b/a/c/") == Place("b", "a/c", None, None)
    told = Place.parse("s3://b/a?endpoint_override=h:9&scheme=http&region=r")
    assert told == Place("b", "a", "http://h:9", "r")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert Place.parse("s3://b").endpoint == "http://minio:9000"
    with pytest.raises(StorageError, match="does not take access_key; known are endpoint_override"):
        Place.parse("s3://b/a?access_key=AKIA")


@pytest.mark.parametrize("part", [2**26, 5 * 2**20])
def test_a_file_takes_the_place_of_an_object_whatever_its_size(
    place: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(bucket, "PART_BYTES", part)
    for data in (b"1" * 6 * 2**20, b"2" * 7 * 2**20, b"3"):
        place.upload("object", file_of(tmp_path, data))
        assert place.read("object") == data
