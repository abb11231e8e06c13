from pathlib import Path

import pytest

from batch import manifest as manifest_module
from batch.manifest import Manifest
from batch.shards import count_rows, duplicates, plan
from tests.batch.doubles import write_manifest

RECIPE = {"steps": 4}


def test_a_plan_is_a_pure_function_of_manifest_and_recipe(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_manifest(tmp_path / folder / "a.parquet", {"prompt": [str(i) for i in range(10)]})
    one = plan(Manifest(str(tmp_path / "one")), 4, RECIPE)
    two = plan(Manifest(str(tmp_path / "two")), 4, RECIPE)
    assert [s.name for s in one] == [s.name for s in two]
    assert [(s.first, s.rows) for s in one] == [(0, 4), (4, 4), (8, 2)]
    assert count_rows(one) == 10


def test_another_recipe_is_another_shard(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"prompt": ["a"]})
    manifest = Manifest(str(tmp_path))
    assert plan(manifest, 4, RECIPE)[0].name != plan(manifest, 4, {"steps": 5})[0].name


def test_a_new_file_leaves_the_old_shards_as_they_are(tmp_path: Path) -> None:
    write_manifest(tmp_path / "b.parquet", {"prompt": ["x", "y"]})
    before = {s.name for s in plan(Manifest(str(tmp_path)), 1, RECIPE)}
    write_manifest(tmp_path / "a.parquet", {"prompt": ["z"]})
    after = {s.name for s in plan(Manifest(str(tmp_path)), 1, RECIPE)}
    assert before < after
    assert len(after) == 3


def test_of_a_key_given_twice_the_first_row_stands(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"prompt": ["1", "2", "3"], "key": ["x", "y", "x"]})
    write_manifest(tmp_path / "b.parquet", {"prompt": ["4", "5"], "key": ["y", None]})
    write_manifest(tmp_path / "c.parquet", {"prompt": ["6"]})
    manifest = Manifest(str(tmp_path))
    assert duplicates(manifest) == {0: {2: "a.parquet:0"}, 1: {0: "a.parquet:1"}}
    shards = plan(manifest, 2, RECIPE)
    assert [s.duplicates for s in shards] == [(), ((2, "a.parquet:0"),), ((0, "a.parquet:1"),), ()]


def test_keys_are_compared_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "KEYS_READ", 3)
    keys = [f"k{i}" for i in range(10)] + ["k2", None, None, "k9"]
    write_manifest(tmp_path / "a.parquet", {"prompt": ["x"] * 14, "key": keys})
    write_manifest(tmp_path / "b.parquet", {"prompt": ["x"] * 4, "key": [10, 11, 12, 11]})
    found = duplicates(Manifest(str(tmp_path)))
    assert found == {0: {10: "a.parquet:2", 13: "a.parquet:9"}, 1: {3: "b.parquet:1"}}


def test_an_empty_file_has_no_shards(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"prompt": []})
    assert plan(Manifest(str(tmp_path)), 4, RECIPE) == []
