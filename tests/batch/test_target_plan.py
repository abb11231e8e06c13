from pathlib import Path
from typing import Any

import pytest

from batch.manifest import Manifest
from batch.shards import Shard
from batch.target_plan import target_plan
from schemas.jobs import DistillJob
from tests.batch.doubles import write_manifest

SAMPLING = {
    "height": 64, "width": 64, "num_inference_steps": 2, "t5_sequence_length": 20,
    "embedded_guidance": 2.0,
}  # fmt: skip


def planned(folder: Path, columns: dict[str, Any], **values: Any) -> list[Shard]:
    write_manifest(folder / "m" / "a.parquet", columns)
    told = {
        "manifest": str(folder / "m"),
        "output": str(folder / "out"),
        "rows_per_shard": 4,
        "target": {"kind": "pair"},
        "sampling": SAMPLING | values.pop("sampling", {}),
    }
    job = DistillJob.parse(told | values)
    return target_plan(Manifest(job.manifest), job)


def rows(shard: Shard) -> list[int]:
    return sorted({row for row, _ in shard.only}) or [*range(shard.first, shard.first + shard.rows)]


def test_a_shard_has_rows_of_one_size(tmp_path: Path) -> None:
    heights = [64, 32, None, 64, 32, 32]
    shards = planned(tmp_path, {"prompt": [str(i) for i in range(6)], "height": heights})
    assert [(s.bucket, rows(s)) for s in shards] == [
        ("64x64", [0, 2, 3]),
        ("32x64", [1]),
        ("32x64", [4, 5]),
    ]
    assert len({shard.name for shard in shards}) == 3
    assert all(shard.bucket in shard.name for shard in shards)


def test_the_plan_is_a_function_of_manifest_and_recipe(tmp_path: Path) -> None:
    columns = {"prompt": ["a", "b"], "height": [64, 32]}
    one, again = (planned(tmp_path, columns) for _ in range(2))
    other = planned(tmp_path, columns, dtype="float32")
    assert one == again
    assert not {s.name for s in one} & {s.name for s in other}


def test_each_caption_has_one_row_that_brings_its_text(tmp_path: Path) -> None:
    columns = {
        "prompt": ["a", "b", "a", "c", "a", "d"],
        "height": [64, 64, 32, 64, 64, 64],
        "cfg_scale": [1.0, 2.0, 1.0, 2.0, 1.0, 1.0],
        "negative_prompt": [None, "no", None, "no", None, "no"],
    }
    shards = planned(tmp_path, columns)
    assert [s.texts for s in shards] == [
        ((0, 0), (1, 0), (1, 1), (3, 0)),
        (),
        ((5, 0),),
    ]
    assert not any(s.texts for s in planned(tmp_path, columns, store_text=False))


def test_another_length_or_lora_is_another_text(tmp_path: Path) -> None:
    columns = {
        "caption": ["a", "a", "a"],
        "t5_sequence_length": [20, 16, 20],
        "loras": [None, None, ["owl"]],
    }
    (shard,) = planned(tmp_path, columns)
    assert shard.texts == ((0, 0), (1, 0), (2, 0))


def test_a_row_without_a_size_is_told_of_by_the_first_shard(tmp_path: Path) -> None:
    columns = {"prompt": ["a", "b", "c"], "height": [float("nan"), 32.0, 64.0]}
    shards = planned(tmp_path, columns)
    assert [(s.bucket, rows(s)) for s in shards] == [("32x64", [0, 1]), ("64x64", [2])]


@pytest.mark.parametrize("height", [float("inf"), 0.0, -16.0, 40.0, 32.5, 2.0**20])
def test_a_size_that_no_picture_has_makes_no_file(height: float, tmp_path: Path) -> None:
    columns = {"prompt": ["a", "b"], "height": [height, 32.0]}
    assert [(s.bucket, rows(s)) for s in planned(tmp_path, columns)] == [("32x64", [0, 1])]


def test_a_shard_of_one_size_names_no_rows(tmp_path: Path) -> None:
    shards = planned(tmp_path, {"prompt": [str(i) for i in range(6)]}, samples_per_row=2)
    assert [(s.only, s.pictures(2)) for s in shards] == [((), 8), ((), 4)]


def test_a_size_may_follow_from_the_picture(tmp_path: Path) -> None:
    columns = {
        "prompt": ["a", "b", "c", "d"], "image": [b"x"] * 4,
        "image_width": [1000, 64, None, 64], "image_height": [700, 64, 5, 64],
        "height": [None, 32, None, 32], "width": [None, 48, None, None],
    }  # fmt: skip
    target = {"kind": "cache", "max_pixels": 4096, "bucket_step": 16}
    shards = planned(tmp_path, columns, target=target)
    assert [(s.bucket, rows(s)) for s in shards] == [("48x64", [0, 2, 3]), ("32x48", [1])]
