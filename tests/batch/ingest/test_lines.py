from batch.ingest.lines import Ref, line_of, refs_of
from batch.ingest.lists import at
from tests.batch.ingest.material import job


def test_a_file_is_bytes_a_path_or_a_place_in_a_tar() -> None:
    assert refs_of(b"x") == Ref(bytes=b"x")
    assert refs_of("a.png") == Ref(path="a.png")
    assert refs_of({"bytes": None, "path": "a.png"}) == Ref(path="a.png")
    assert refs_of(at("a.tar", 512, 7)) == Ref(path="a.tar", span=(512, 7))
    assert refs_of({"bytes": None, "path": None}) is None
    assert refs_of(None) is None
    assert refs_of(["a", None]) == (Ref(path="a"), Ref())


def test_a_line_of_parquet_is_read_by_the_columns_that_the_job_names() -> None:
    source = {"kind": "parquet", "path": "in", "image": "img", "caption": "words"}
    line = line_of(job("out", source), {"img": b"x", "words": "a", "image": 5}, "a.parquet:3")
    assert (line.where, line.prompt, line.files) == ("a.parquet:3", "a", {"image": Ref(bytes=b"x")})


def test_a_line_of_a_list_says_where_its_caption_is_and_what_is_wrong() -> None:
    values = {
        "_entry": "a.png", "_stamp": "1/2", "_fault": "no", "_caption": at("a.txt"),
        "key": "a.png", "prompt": None, "image": at("a.png"),
    }  # fmt: skip
    line = line_of(job("out", {"kind": "folder", "path": "in"}), values, "00000.parquet:0")
    assert (line.where, line.caption, line.fault) == ("a.png", Ref(path="a.txt"), "no")
