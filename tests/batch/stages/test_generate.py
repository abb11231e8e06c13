from pathlib import Path
from typing import Any

import pytest
import torch

from batch.manifest import Manifest, Row, RowReader
from batch.stages import generate
from batch.stages.generate import seed_of
from schemas.records import ImageRecord, Record, RejectedRecord
from tests.batch.doubles import Painter, PainterStage, job, write_manifest
from tests.batch.test_media import png


def stage_and_rows(
    tmp_path: Path, columns: dict[str, Any], **values: Any
) -> tuple[PainterStage, list[Row]]:
    manifest = Manifest(str(write_manifest(tmp_path / "m.parquet", columns)))
    stage = PainterStage(job(tmp_path, tmp_path / "m.parquet", **values), (str(tmp_path),))
    stage.setup()
    (file,) = manifest.files
    return stage, list(RowReader(manifest.fs).read(file, 0, file.rows))


def reasons(records: list[Record]) -> dict[str, str]:
    return {r.key: f"{r.error}: {r.reason}" for r in records if isinstance(r, RejectedRecord)}


def test_every_bad_row_says_why_and_no_good_row_is_lost(tmp_path: Path) -> None:
    prompts = ["fox", "raise", "owl", "nan", None, "x" * 1_000_000, "bee", "cat", "dog"]
    stage, rows = stage_and_rows(
        tmp_path,
        {
            "prompt": prompts,
            "key": [str(i) for i in range(9)],
            "height": [16, 16, 16, 16, 16, 16, 17, 16, 16],
            "embedded_guidance": [1.0] * 7 + [float("nan"), 1.0],
            "input_image": [None] * 8 + [b"no picture"],
        },
    )
    records = stage(rows, {2: "WorkerDied: the process died"}, "m.parquet")
    assert [r.key for r in records] == [str(i) for i in range(9)]
    assert isinstance(records[0], ImageRecord)
    told = reasons(records)
    assert told["1"] == "RowRaised: ValueError: cannot paint this"
    assert told["2"] == "WorkerDied: the process died"
    assert told["3"].startswith("NumbersBroke: ")
    assert told["4"] == "SchemaError: prompt: is missing"
    assert "prompt: String should have at most 20000 characters" in told["5"]
    assert "height" in told["6"]
    assert "17" in told["6"]
    assert "embedded_guidance" in told["7"]
    assert told["8"].startswith("PictureError: ")


def test_neighbours_of_a_row_that_raises_come_out_as_without_it(tmp_path: Path) -> None:
    def images(prompts: list[str]) -> dict[str, bytes]:
        stage, rows = stage_and_rows(tmp_path, {"prompt": prompts, "key": ["a", "b", "c"]})
        return {r.key: r.image for r in stage(rows, {}, "m") if isinstance(r, ImageRecord)}

    bad, good = images(["fox", "raise", "owl"]), images(["fox", "bee", "owl"])
    assert bad == {k: good[k] for k in "ac"}


def test_what_a_row_says_wins_and_every_used_value_is_recorded(tmp_path: Path) -> None:
    stage, rows = stage_and_rows(
        tmp_path,
        {
            "prompt": ["fox", "owl"],
            "seed": [5, None],
            "cfg_scale": [None, 2.5],
            "height": [32, None],
        },
    )
    fox, owl = stage(rows, {}, "m")
    assert isinstance(fox, ImageRecord)
    assert isinstance(owl, ImageRecord)
    assert (fox.seed, fox.cfg_scale, fox.height, fox.width) == (5, 1.0, 32, 16)
    assert (owl.seed, owl.cfg_scale, owl.height) == (seed_of(owl.key, None, 0), 2.5, 16)


def test_samples_of_a_row_differ_and_the_first_has_the_seed_that_was_given(tmp_path: Path) -> None:
    stage, rows = stage_and_rows(
        tmp_path, {"prompt": ["fox", "owl"], "seed": [5, None]}, samples_per_row=3
    )
    records = stage(rows, {}, "m")
    assert [(r.key == rows[0].key, r.sample) for r in records] == [(i < 3, i % 3) for i in range(6)]
    seeds = [r.seed for r in records if isinstance(r, ImageRecord)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 6


def test_a_seed_depends_on_nothing_but_the_key_and_the_sample() -> None:
    assert seed_of("a", None, 0) == seed_of("a", None, 0) != seed_of("b", None, 0)
    assert 0 <= seed_of("a", None, 1) < 2**63


def test_a_large_shard_goes_through_the_engine_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(chunk: int) -> list[Record]:
        monkeypatch.setattr(generate, "CHUNK", chunk)
        stage, rows = stage_and_rows(tmp_path, {"prompt": ["fox", "nan", "raise", "owl", "bee"]})
        return stage(rows, {}, "m")

    assert made(2) == made(100)


def test_when_all_rows_raise_no_row_is_to_blame(tmp_path: Path) -> None:
    stage, rows = stage_and_rows(tmp_path, {"prompt": ["raise", "raise"]})
    with pytest.raises(ValueError, match="cannot paint this"):
        stage(rows, {}, "m")


def test_a_fault_of_the_machine_is_not_put_on_a_row(tmp_path: Path) -> None:
    class Full(Painter):
        def each(self, requests: object) -> Any:
            raise torch.OutOfMemoryError("card full")

    stage, rows = stage_and_rows(tmp_path, {"prompt": ["fox"]})
    stage.engine = Full()
    with pytest.raises(torch.OutOfMemoryError):
        stage(rows, {}, "m")


def test_an_input_picture_reaches_the_engine_in_the_size_to_make(tmp_path: Path) -> None:
    stage, rows = stage_and_rows(tmp_path, {"prompt": ["fox"], "input_image": [png((64, 64))]})
    (record,) = stage(rows, {}, "m")
    assert isinstance(record, ImageRecord)
    assert (record.height, record.width) == (16, 16)
