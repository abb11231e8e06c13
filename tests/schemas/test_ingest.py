from typing import Any

import pytest

from schemas.base import SchemaError
from schemas.ingest import IngestJob


def parsed(source: dict[str, Any], **values: Any) -> IngestJob:
    return IngestJob.parse({"output": "out", "source": source} | values)


FOLDER = {"kind": "folder", "path": "in"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "zip"}, "folder"),
        ({"kind": "folder", "pth": "in"}, "did you mean 'path'"),
        ({"kind": "folder", "path": "s3://k:s@bucket/in"}, "has credentials in it"),
        ({"kind": "hub", "dataset_id": "a", "read_as": FOLDER}, "owner/name"),
        ({"kind": "hub", "dataset_id": "a/b", "read_as": {**FOLDER, "path": "../x"}}, "read_as"),
        ({"kind": "hub", "dataset_id": "a/b", "read_as": {**FOLDER, "path": "/x"}}, "read_as"),
        ({"kind": "parquet", "path": "in", "data_file_keys": ["key"]}, "columns of our own"),
        ({"kind": "webdataset", "path": "in", "data_file_keys": "a,a"}, "named twice"),
    ],
)
def test_what_is_wrong_with_a_source_is_said(source: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        parsed(source)


def test_the_picture_is_the_first_of_the_columns_of_files() -> None:
    table = {"kind": "table", "dataset_base_path": "in", "dataset_metadata_path": "t.csv"}
    assert parsed(table).file_keys == ("image",)
    told = parsed(table | {"data_file_keys": "mask,image"})
    assert told.file_keys == ("image", "mask")


def test_where_material_lies_is_not_in_the_recipe_and_how_it_is_read_is() -> None:
    one = parsed({"kind": "parquet", "path": "in", "caption": "words"}).recipe()
    assert one["source.caption"] == "words"
    other = parsed({"kind": "parquet", "path": "elsewhere", "caption": "words"}, workers=3).recipe()
    assert one == other


def test_lists_are_below_the_output_and_parquet_needs_none() -> None:
    assert parsed(FOLDER).manifest == "out/_run/manifest"
    bucket = parsed(FOLDER, output="s3://b/out?region=x")
    assert bucket.manifest == "s3://b/out/_run/manifest?region=x"
    assert parsed({"kind": "parquet", "path": "in"}).manifest == "in"
