import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from batch.actor import ShardWorker
from batch.errors import MachineFault
from batch.manifest import Manifest, RowReader
from batch.output import Output
from batch.shards import plan
from batch.stages import generate
from batch.stages.generate import GenerateStage, seed_of
from batch.wishes import Wish, wishes_of
from schemas.records import ImageRecord, Record, RejectedRecord
from tests.batch.doubles import Painter, PainterStage, job, write_manifest
from tests.batch.test_media import png


class Onlooker:
    """Lets a stage work, and writes down what it says."""

    def __init__(self, leaves_at: int = 99) -> None:
        self.told: list[tuple[str, list[int]]] = []
        self.leaves_at = leaves_at

    def at(self, stage: str, wishes: Sequence[Wish]) -> None:
        self.told.append((stage, [wish.row.number for wish in wishes]))

    def leaving(self) -> bool:
        return len(self.told) > self.leaves_at


def stage_and_wishes(
    tmp_path: Path, columns: dict[str, Any], **values: Any
) -> tuple[PainterStage, list[Wish]]:
    manifest = Manifest(str(write_manifest(tmp_path / "m.parquet", columns)))
    asked = job(tmp_path, tmp_path / "m.parquet", rows_per_shard=1000, **values)
    stage = PainterStage(asked, (str(tmp_path),))
    stage.setup()
    (shard,) = plan(manifest, 1000, {})
    rows = list(RowReader(manifest.fs).read(shard.file, 0, shard.rows))
    return stage, list(wishes_of(shard, rows, asked.samples_per_row))


def made(stage: PainterStage, wishes: list[Wish], file: str = "m") -> list[Record]:
    """Records in the order of the wishes."""
    answers = {w.number: record.result() for w, record in stage(wishes, file, Onlooker())}
    return [answers[wish.number] for wish in wishes]


def reasons(records: list[Record]) -> dict[str, str]:
    return {r.key: f"{r.error}: {r.reason}" for r in records if isinstance(r, RejectedRecord)}


def test_every_bad_row_says_why_and_no_good_row_is_lost(tmp_path: Path) -> None:
    prompts = ["fox", "raise", "owl", "nan", None, "x" * 1_000_000, "bee", "cat", "dog"]
    stage, wishes = stage_and_wishes(
        tmp_path,
        {
            "prompt": prompts,
            "key": [str(i) for i in range(9)],
            "height": [16, 16, 16, 16, 16, 16, 17, 16, 16],
            "embedded_guidance": [1.0] * 7 + [float("nan"), 1.0],
            "input_image": [None] * 8 + [b"no picture"],
        },
    )
    records = made(stage, wishes)
    assert [r.key for r in records] == [str(i) for i in range(9)]
    assert isinstance(records[0], ImageRecord)
    told = reasons(records)
    assert told["1"] == "RowRaised: ValueError: cannot paint this"
    assert told["3"].startswith("NumbersBroke: ")
    assert told["4"] == "SchemaError: prompt: is missing"
    assert "prompt: String should have at most 20000 characters" in told["5"]
    assert "height" in told["6"]
    assert "17" in told["6"]
    assert "embedded_guidance" in told["7"]
    assert told["8"].startswith("PictureError: ")


def test_neighbours_of_a_row_that_raises_come_out_as_without_it(tmp_path: Path) -> None:
    def images(prompts: list[str]) -> dict[str, bytes]:
        stage, wishes = stage_and_wishes(tmp_path, {"prompt": prompts, "key": ["a", "b", "c"]})
        return {r.key: r.image for r in made(stage, wishes) if isinstance(r, ImageRecord)}

    bad, good = images(["fox", "raise", "owl"]), images(["fox", "bee", "owl"])
    assert bad == {k: good[k] for k in "ac"}


def test_what_a_row_says_wins_and_every_used_value_is_recorded(tmp_path: Path) -> None:
    stage, wishes = stage_and_wishes(
        tmp_path,
        {
            "prompt": ["fox", "owl"],
            "seed": [5, None],
            "cfg_scale": [None, 2.5],
            "height": [32, None],
        },
    )
    fox, owl = made(stage, wishes)
    assert isinstance(fox, ImageRecord)
    assert isinstance(owl, ImageRecord)
    assert (fox.seed, fox.cfg_scale, fox.height, fox.width) == (5, 1.0, 32, 16)
    assert (owl.seed, owl.cfg_scale, owl.height) == (seed_of(owl.key, None, 0), 2.5, 16)


def test_samples_of_a_row_differ_and_the_first_has_the_seed_that_was_given(tmp_path: Path) -> None:
    stage, wishes = stage_and_wishes(
        tmp_path, {"prompt": ["fox", "owl"], "seed": [5, None]}, samples_per_row=3
    )
    records = made(stage, wishes)
    assert [(r.key == wishes[0].row.key, r.sample) for r in records] == [
        (i < 3, i % 3) for i in range(6)
    ]
    seeds = [r.seed for r in records if isinstance(r, ImageRecord)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 6


def test_a_seed_depends_on_nothing_but_the_key_and_the_sample() -> None:
    assert seed_of("a", None, 0) == seed_of("a", None, 0) != seed_of("b", None, 0)
    assert 0 <= seed_of("a", None, 1) < 2**63


def test_a_large_shard_goes_through_the_engine_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_chunks(chunk: int) -> list[Record]:
        monkeypatch.setattr(generate, "CHUNK", chunk)
        stage, wishes = stage_and_wishes(
            tmp_path, {"prompt": ["fox", "nan", "raise", "owl", "bee"]}
        )
        return made(stage, wishes)

    assert in_chunks(2) == in_chunks(100)


def test_when_all_rows_raise_no_row_is_to_blame(tmp_path: Path) -> None:
    stage, wishes = stage_and_wishes(tmp_path, {"prompt": ["raise", "raise"]})
    with pytest.raises(ValueError, match="cannot paint this"):
        made(stage, wishes)


def test_an_engine_that_has_served_a_row_is_not_to_blame_for_others(tmp_path: Path) -> None:
    stage, wishes = stage_and_wishes(tmp_path, {"prompt": ["fox"] * 4 + ["raise"] * 2})
    assert len(reasons(made(stage, wishes))) == 2


def test_a_fault_of_the_machine_is_not_put_on_a_row(tmp_path: Path) -> None:
    class Full(Painter):
        def each(self, requests: object, *, watch: object = None) -> Any:
            raise torch.OutOfMemoryError("card full")

    stage, wishes = stage_and_wishes(tmp_path, {"prompt": ["fox"]})
    stage.engine = Full()
    with pytest.raises(MachineFault, match="OutOfMemoryError: card full"):
        made(stage, wishes)


def test_an_input_picture_reaches_the_engine_in_the_size_to_make(tmp_path: Path) -> None:
    stage, wishes = stage_and_wishes(tmp_path, {"prompt": ["fox"], "input_image": [png((64, 64))]})
    (record,) = made(stage, wishes)
    assert isinstance(record, ImageRecord)
    assert (record.height, record.width) == (16, 16)


def test_a_record_says_which_picture_it_started_from(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png())
    refs = [None, {"path": "in.png", "bytes": None}, {"path": None, "bytes": png((8, 8))}]
    stage, wishes = stage_and_wishes(tmp_path, {"prompt": ["fox"] * 3, "input_image": refs})
    origins = [
        (r.input_image_path, r.input_image_sha256)
        for r in made(stage, wishes)
        if isinstance(r, ImageRecord)
    ]
    sums = [hashlib.sha256(data).hexdigest() for data in (png(), png((8, 8)))]
    assert origins == [(None, None), ("in.png", sums[0]), (None, sums[1])]


def test_a_worker_that_loads_no_engine_imports_no_encoders() -> None:
    words = "import sys, batch.stages.generate; print({'transformers', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_pictures_to_start_from_are_held_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "CHUNK_BYTES", 2 * 3 * 16 * 16 * 4)
    stage, wishes = stage_and_wishes(
        tmp_path, {"prompt": ["fox"] * 7, "input_image": [png((16, 16))] * 7}
    )
    listener = Onlooker()
    assert len(list(stage(wishes, "m", listener))) == 7
    computed = [rows for what, rows in listener.told if what == "denoise"]
    assert computed == [[0, 1, 2], [3, 4, 5], [6]]
    read = [rows for what, rows in listener.told if what == "read"][1:]
    assert read == [[number] for number in range(7)]


def test_a_stage_says_which_rows_are_next_and_leaves_when_asked(tmp_path: Path) -> None:
    stage, wishes = stage_and_wishes(tmp_path, {"prompt": ["fox"] * 10})
    listener = Onlooker(leaves_at=2)
    answers = [wish.number for wish, _ in stage(wishes, "m", listener)]
    assert listener.told == [
        ("read", list(range(10))),
        ("denoise", [0, 1, 2, 3]),
        ("denoise", [4, 5, 6, 7]),
    ]
    assert answers == [0, 1, 2, 3, 4, 5, 6, 7]


def test_approximate_pictures_say_so_and_their_worker_tells_how_far_they_are_off(
    tmp_path: Path,
) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", {"prompt": ["a red circle", "a star"]})
    engine = {"approximate": "fp8", "torch_dtype": "float32", "device": "cpu"}
    asked = job(tmp_path, manifest, engine=engine, sampling={"height": 64, "width": 64})
    Output(asked.output, asked.format).claim(asked.recipe())
    worker = ShardWorker(asked, GenerateStage(asked, (str(tmp_path),)))
    worker.setup()
    (shard,) = plan(Manifest(str(manifest)), 4, asked.recipe())
    report = worker(shard)
    assert len(report.deviations) == report.done == 2
    assert all(0 < far < 0.5 for far in report.deviations)
    table = pq.read_table(next((tmp_path / "out" / "data").glob("*.parquet")))
    assert set(table["approximate"].to_pylist()) == {"fp8"}
    chosen = sorted(path.name for path in (tmp_path / "out" / "_run" / "shapes").iterdir())
    assert chosen == [
        "decode_batch-64x64.json",
        "micro_batch-64x64-text-16.json",
        "text_batch-16-tokens.json",
    ]
    assert set(table["micro_batch"].to_pylist()) == {16}
    chosen_file = tmp_path / "out" / "_run" / "shapes" / chosen[1]
    # as another card chose
    chosen_file.write_text(chosen_file.read_text().replace('"chosen": 16', '"chosen": 2'))
    (tmp_path / "out" / "data" / f"{shard.name}.parquet").unlink()
    again = ShardWorker(asked, GenerateStage(asked, (str(tmp_path),)))
    again.setup()
    again(shard)
    table = pq.read_table(next((tmp_path / "out" / "data").glob("*.parquet")))
    assert set(table["micro_batch"].to_pylist()) == {2}
