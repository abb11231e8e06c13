import datetime
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from batch import sink
from batch.sink import Carried, file_name, to_rejected, write_parquet, write_tar
from schemas.records import ImageRecord, RejectedRecord


def record(key: str, sample: int = 0, size: int = 10) -> ImageRecord:
    return ImageRecord(
        key=key,
        sample=sample,
        prompt=f"prompt of {key}",
        image=key.encode() * size,
        seed=2**62,
        negative_prompt="",
        cfg_scale=1.0,
        embedded_guidance=3.5,
        height=64,
        width=64,
        rand_device="cpu",
        num_inference_steps=4,
        t5_sequence_length=16,
        schedule="flux",
        sigma_shift=1.5,
        denoising_strength=1.0,
        tiled=False,
        tile_size=128,
        tile_stride=64,
        micro_batch=4,
        tokens_dropped=0,
    )


def to_parquet(
    records: list[tuple[ImageRecord, Carried]], passthrough: list[pa.Field], kind: str
) -> bytes:
    out = io.BytesIO()
    assert write_parquet(out, records, passthrough, kind) == len(records)
    return out.getvalue()


def to_tar(records: list[tuple[ImageRecord, Carried]], kind: str) -> bytes:
    out = io.BytesIO()
    assert write_tar(out, records, kind) == len(records)
    return out.getvalue()


LICENCE = [pa.field("licence", pa.string())]


def test_records_come_back_as_they_went_in_with_what_was_carried() -> None:
    buffer = to_parquet(
        [(record("a"), {"licence": "CC0"}), (record("b"), {"licence": None})], LICENCE, "png"
    )
    table = pq.read_table(pa.BufferReader(buffer))
    assert table["key"].to_pylist() == ["a", "b"]
    assert table["licence"].to_pylist() == ["CC0", None]
    assert table["seed"].to_pylist() == [2**62] * 2
    assert table["image"].to_pylist()[0] == {"bytes": b"a" * 10, "path": "a-0.png"}


def test_the_same_records_are_the_same_bytes() -> None:
    rows: list[tuple[ImageRecord, dict[str, Any]]] = [(record(k), {}) for k in "abc"]
    assert to_parquet(rows, [], "png") == to_parquet(rows, [], "png")
    assert to_tar(rows, "png") == to_tar(rows, "png")


def test_pictures_are_not_compressed_again_and_row_groups_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sink, "ROW_GROUP_BYTES", 1000)
    buffer = to_parquet([(record(str(i), size=400), {}) for i in range(9)], [], "png")
    metadata = pq.read_metadata(pa.BufferReader(buffer))
    assert metadata.num_row_groups == 3
    columns = {
        (c := metadata.row_group(0).column(i)).path_in_schema: c.compression
        for i in range(metadata.num_columns)
    }
    assert columns["image.bytes"] == "UNCOMPRESSED"
    assert columns["prompt"] == "ZSTD"


def test_a_shard_without_a_good_row_is_still_a_file_that_datasets_reads(tmp_path: Path) -> None:
    table = pq.read_table(pa.BufferReader(to_parquet([], LICENCE, "png")))
    assert table.num_rows == 0
    assert "image" in table.schema.names
    for name, rows in (("a", []), ("b", [(record("a"), {"licence": None})])):
        (tmp_path / f"{name}.parquet").write_bytes(to_parquet(rows, LICENCE, "png"))
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    dataset = load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert dataset["key"] == ["a"]


def test_a_tar_has_pictures_beside_their_facts_and_no_trace_of_the_machine() -> None:
    data = to_tar([(record("a/b.c", sample=2), {"licence": "CC0"})], "jpeg")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == ["a%2Fb%2Ec-2.jpg", "a%2Fb%2Ec-2.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}
        told = json.load(tar.extractfile(members[1]) or io.BytesIO())
    assert (told["key"], told["licence"], "image" in told) == ("a/b.c", "CC0", False)


def test_names_of_pictures_are_safe_and_distinct() -> None:
    names = {file_name(record(k), "png") for k in ("a.b", "a/b", "a%2Eb", "../a", "ä b")}
    assert len(names) == 5
    assert all(name.count(".") == 1 and "/" not in name for name in names)


def test_a_key_of_any_length_has_a_name_that_an_archive_can_hold() -> None:
    keys = ["k" * 500, "k" * 501, "ключ " * 20, "k"]
    data = to_tar([(record(key), {}) for key in keys], "webp")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
        told = [json.load(tar.extractfile(name) or io.BytesIO()) for name in names[1::2]]
    assert len(set(names)) == 8
    assert max(len(name) for name in names) < 100
    assert [one["key"] for one in told] == keys


def test_what_json_has_no_word_for_is_carried_so_that_it_can_be_read() -> None:
    carried = {"raw": b"\xff\x00", "day": datetime.date(2026, 1, 2), "none": None}
    with tarfile.open(fileobj=io.BytesIO(to_tar([(record("a"), carried)], "png"))) as tar:
        told = json.load(tar.extractfile("a-0.json") or io.BytesIO())
    assert (told["raw"], told["day"], told["none"]) == ("/wA=", "2026-01-02", None)


def test_rejected_rows_keep_their_reason() -> None:
    bad = RejectedRecord(
        key="a",
        sample=0,
        manifest_file="m.parquet",
        row=3,
        error="SchemaError",
        reason="height: 65",
        prompt=None,
    )
    (row,) = pq.read_table(pa.BufferReader(to_rejected([bad]))).to_pylist()
    assert row == bad.model_dump()
