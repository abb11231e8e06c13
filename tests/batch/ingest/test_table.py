import json
from pathlib import Path

import pyarrow as pa
import pytest

from batch.errors import ManifestError
from batch.ingest.lists import FAULT
from batch.ingest.table import TableLister, lines_of
from schemas.ingest import TableSource
from tests.batch.ingest.material import table


def lister(path: Path, **values: object) -> TableLister:
    told = {"kind": "table", "dataset_base_path": ".", "dataset_metadata_path": str(path)}
    return TableLister(TableSource.parse(told | values))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.json", '{"image": "a"}', "is no list of rows"),
        ("t.json", '[{"image": NaN}]', "NaN is no value"),
        ("t.json", "[1]", "t.json:0: '1' is no row"),
        ("t.json", "[]", "has no rows"),
        ("t.jsonl", '{"image": "a"}\n{"image"', "t.jsonl:1: is not JSON"),
        ("t.csv", "image,prompt\na.png,b,c\n", "t.csv:0: has 3 cells, and the head 2"),
        ("t.csv", "image,image\na,b\n", "named twice"),
        ("t.csv", "", "no CSV with a head"),
        ("t.csv", "image,prompt\n", "has no rows"),
    ],
)
def test_what_is_no_table_is_told_by_its_row(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=words):
        lines_of(str(tmp_path / name))


def test_a_table_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        lines_of(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_bytes("für".encode("latin-1"))
    with pytest.raises(ManifestError, match="is not UTF-8"):
        lines_of(str(tmp_path / "t.csv"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_json_ends_at_a_line_feed_alone(tmp_path: Path, end: str) -> None:
    captions = ["a\u2028b", "c\u0085d", "e\u2029f\x0b"]
    rows = [{"image": "a.png", "prompt": caption} for caption in captions]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = end.join([*lines[:2], "", lines[2], ""])
    (tmp_path / "t.jsonl").write_bytes(text.encode())
    assert lines_of(str(tmp_path / "t.jsonl")) == rows


def test_quotes_and_line_breaks_stay_in_their_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('image,prompt\na.png,"a, ""b""\nc"\nb.png,\n')
    assert lines_of(str(tmp_path / "t.csv")) == [
        {"image": "a.png", "prompt": 'a, "b"\nc'},
        {"image": "b.png", "prompt": None},
    ]


def test_columns_are_files_captions_or_carried_and_clashes_are_named(tmp_path: Path) -> None:
    path = table(tmp_path / "t.json", [{"image": "a", "prompt": "b", "n": 1, "image_width": 5}])
    with pytest.raises(ManifestError, match="column 'image_width' is called as one of our own"):
        lister(path)
    told = lister(path, leave_out=["image_width"])
    assert told.found.carried == ("n",)
    with pytest.raises(ManifestError, match="has no column 'mask'; it has image, prompt, n"):
        lister(path, data_file_keys="image,mask", leave_out=["image_width"])


def test_values_of_several_types_are_named_with_their_column(tmp_path: Path) -> None:
    lines = [{"image": "a", "prompt": "b", "n": 1}, {"image": "a", "prompt": "b", "n": "x"}]
    with pytest.raises(ManifestError, match="column 'n' has values of several types"):
        lister(table(tmp_path / "t.json", lines)).fields()


def test_a_row_is_known_again_by_what_it_says(tmp_path: Path) -> None:
    lines = [{"image": "a", "prompt": "b"}, {"image": "c", "prompt": "d"}]
    one = lister(table(tmp_path / "t.json", lines)).entries()
    two = lister(table(tmp_path / "t.json", [*lines, {"image": "e", "prompt": "f"}])).entries()
    assert list(two) == ["t.json:0", "t.json:1", "t.json:2"]
    assert {name: two[name] for name in one} == one


def test_a_csvs_columns_of_numbers_are_numbers_and_others_are_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "image,seed,cfg_scale,tiled,rank\n"
        "a.png,9007199254740993,2.5,true,07\nb.png,,,,\nc.png,1.5,much,maybe,1\n"
    )
    told = lister(path)
    kinds = {field.name: field.type for field in told.fields()}
    assert kinds | {"seed": pa.int64(), "cfg_scale": pa.float64(), "tiled": pa.bool_()} == kinds
    assert kinds["rank"] == pa.string()
    good, empty, bad = told.rows(list(told.entries()))
    names = ("seed", "cfg_scale", "tiled", "rank")
    assert [good[name] for name in names] == [9007199254740993, 2.5, True, "07"]
    assert [empty[name] for name in names] == [None] * 4
    assert (good[FAULT], empty[FAULT]) == (None, None)
    assert bad[FAULT] == (
        "seed: '1.5' is no whole number; cfg_scale: 'much' is no number; "
        "tiled: 'maybe' is neither true nor false"
    )
