from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import ManifestError, OutputError
from batch.ingest.plan import ingest_plan, survey
from schemas.ingest import Found
from tests.batch.ingest.material import folder, ingest, job, picture, rows, table, tar
from tests.batch.s3 import serving


def parquet(place: Path, columns: dict[str, Any], name: str = "a") -> dict[str, Any]:
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), place / f"{name}.parquet")
    return {"kind": "parquet", "path": str(place)}


def test_what_came_later_is_new_shards_and_what_was_there_is_left_alone(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"a.png": picture(), "a.txt": "a"}
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    ingest(job(tmp_path / "out", source))
    before = {path.name for path in (tmp_path / "out" / "data").iterdir()}
    folder(tmp_path / "in", {"0.png": picture(seed=1), "0.txt": "zero"})
    reports = ingest(job(tmp_path / "out", source))
    assert [report.state for report in reports] == ["there", "published"]
    assert before < {path.name for path in (tmp_path / "out" / "data").iterdir()}
    assert sorted(rows(tmp_path / "out")) == ["0.png", "a.png"]


def test_tars_and_rows_of_tables_that_come_later_are_new_shards(tmp_path: Path) -> None:
    folder(tmp_path / "in", {"0.png": picture()})
    lines = [{"image": "0.png", "prompt": "a", "n": 1}]
    told = {
        "kind": "table",
        "dataset_base_path": str(tmp_path / "in"),
        "dataset_metadata_path": str(table(tmp_path / "t.jsonl", lines)),
    }
    tars = {"kind": "webdataset", "path": str(tmp_path / "tars")}
    tar(tmp_path / "tars" / "a.tar", [("0.png", picture()), ("0.txt", "a")])
    ingest(job(tmp_path / "rows", told))
    ingest(job(tmp_path / "samples", tars))
    table(tmp_path / "t.jsonl", [*lines, {"image": "0.png", "prompt": "b", "n": None}])
    tar(tmp_path / "tars" / "b.tar", [("0.png", picture()), ("0.txt", "b")])
    assert [r.state for r in ingest(job(tmp_path / "rows", told))] == ["there", "published"]
    assert [r.state for r in ingest(job(tmp_path / "samples", tars))] == ["there", "published"]
    assert [row["n"] for row in rows(tmp_path / "rows").values()] == [1, None]
    assert sorted(rows(tmp_path / "samples")) == ["a/0", "b/0"]
    table(tmp_path / "t.jsonl", [{"image": "0.png", "prompt": "other", "n": 1}])
    with pytest.raises(OutputError, match=r"t\.jsonl:1: is there no more"):
        ingest_plan(job(tmp_path / "rows", told))


def test_a_column_that_came_later_is_another_recipe(tmp_path: Path) -> None:
    folder(tmp_path / "in", {"0.png": picture()})
    told = {
        "kind": "table",
        "dataset_base_path": str(tmp_path / "in"),
        "dataset_metadata_path": str(
            table(tmp_path / "t.json", [{"image": "0.png", "prompt": "a"}])
        ),
    }
    ingest(job(tmp_path / "out", told))
    table(tmp_path / "t.json", [{"image": "0.png", "prompt": "a", "n": 1}])
    with pytest.raises(OutputError, match=r"found\.carried was \[\] and is \['n'\]"):
        ingest_plan(job(tmp_path / "out", told))


@pytest.mark.parametrize(
    ("columns", "values", "words"),
    [
        ({"image": [b"x"]}, {}, "has no column 'text'"),
        ({"image": [1], "text": ["a"]}, {}, "column 'image' is int64"),
        ({"image": [b"x"], "text": [1]}, {}, "column 'text' is int64; allowed is string"),
        ({"image": [[b"x"]], "text": ["a"]}, {}, "has several pictures a row"),
        ({"image": [b"x"], "text": ["a"], "prompt": ["b"]}, {}, "leave_out names columns"),
        ({"image": [b"x"], "text": ["a"]}, {"leave_out": ["b"]}, "has no column 'b'"),
        ({"image": [b"x"], "text": ["a"]}, {"data_file_keys": ["pose"]}, "no column 'pose'"),
        ({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}, {}, "no rows"),
    ],
)
def test_parquet_whose_columns_do_not_fit_is_refused(
    tmp_path: Path, columns: dict[str, Any], values: dict[str, Any], words: str
) -> None:
    source = parquet(tmp_path / "in", columns) | values
    with pytest.raises(ManifestError, match=words):
        ingest_plan(job(tmp_path / "out", source))
    assert not (tmp_path / "out").exists()


def test_files_of_parquet_have_the_same_columns(tmp_path: Path) -> None:
    parquet(tmp_path / "in", {"image": [b"x"], "text": ["a"]})
    source = parquet(tmp_path / "in", {"image": [b"x"], "text": ["a"], "n": [1]}, "b")
    with pytest.raises(ManifestError, match=r"b\.parquet: has columns"):
        ingest_plan(job(tmp_path / "out", source))


def test_lists_of_files_in_parquet_are_columns_of_several(tmp_path: Path) -> None:
    columns = {"image": [picture()], "text": ["a"], "more": [[picture(), picture(seed=1)]]}
    source = parquet(tmp_path / "in", columns) | {"data_file_keys": "more"}
    planned, _, _ = ingest_plan(job(tmp_path / "out", source))
    assert planned.found == Found(several=("more",))
    ingest(job(tmp_path / "out", source))
    (row,) = rows(tmp_path / "out").values()
    assert [file["bytes"] for file in row["more"]] == columns["more"][0]


def test_a_look_at_a_source_writes_nothing(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"a.png": picture(), "a.txt": "a", "b.png": picture()}
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    seen = survey(job(tmp_path / "out", source))
    assert seen.lines() == ["2 pictures and captions in the source, 2 of them not yet planned"]
    assert not (tmp_path / "out").exists()
    ingest(job(tmp_path / "out", source))
    assert survey(job(tmp_path / "out", source)).fresh == 0
    with pytest.raises(OutputError, match="rows_per_shard was 4 and is 5"):
        survey(job(tmp_path / "out", source, rows_per_shard=5))


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ManifestError, match="is empty"):
        ingest_plan(job(tmp_path / "out", {"kind": "folder", "path": str(tmp_path / "in")}))


def test_material_and_shards_may_both_be_in_a_bucket(tmp_path: Path) -> None:
    from batch.storage import Storage

    with serving() as server:
        place = Storage(server.uri("in"))
        for i in range(3):
            place.replace(f"deep/{i}.png", picture(seed=i))
            place.replace(f"deep/{i}.txt", f"p{i}".encode())
        path = tar(tmp_path / "a.tar", [("0.png", picture(seed=7)), ("0.txt", "tarred")])
        Storage(server.uri("tars")).replace("a.tar", path.read_bytes())
        ingest(job(server.uri("out"), {"kind": "folder", "path": server.uri("in")}))
        ingest(job(server.uri("out2"), {"kind": "webdataset", "path": server.uri("tars")}))
        made = []
        for name in ("out", "out2"):
            storage = Storage(server.uri(name))
            for file in storage.names("data"):
                with storage.open(f"data/{file}") as opened:
                    made += pq.read_table(opened).to_pylist()
    assert [row["prompt"] for row in made] == ["p0", "p1", "p2", "tarred"]
    assert made[3]["image"]["bytes"] == picture(seed=7)
