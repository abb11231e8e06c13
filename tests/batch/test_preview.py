from pathlib import Path

from batch.preview import preview
from batch.run import checked_plan
from tests.batch.doubles import job, write_manifest


def test_rows_are_counted_by_bucket_and_faulty_ones_are_named(tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path / "m.parquet",
        {
            "prompt": ["a", "b", "c", None, "e"],
            "height": [64, 64, 32, 64, 64],
            "cfg_scale": [1.0, 3.0, 1.0, 1.0, 1.0],
            "key": ["1", "2", "3", "4", "1"],
        },
    )
    asked = job(tmp_path, manifest, samples_per_row=2)
    told = preview(asked, *checked_plan(asked))
    assert (told.shards, told.rows, told.pictures, told.faulty) == (2, 5, 10, 2)
    text = "\n".join(told.lines())
    assert "m.parquet:3: prompt: is missing" in text
    assert "m.parquet:4: the key stands first in m.parquet:0" in text
    assert sorted(told.buckets.values()) == [1, 1, 1]
    assert any("cfg with negative prompt" in name for name in told.buckets)


def test_a_row_that_clashes_with_the_job_is_found(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", {"prompt": ["a"], "tile_stride": [256]})
    asked = job(tmp_path, manifest)
    told = preview(asked, *checked_plan(asked))
    assert "tile_stride 256 is larger than tile_size 128" in told.faults[0]
