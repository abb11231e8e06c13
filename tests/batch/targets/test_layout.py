import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.targets.layout import (
    COLUMNS,
    digest_of,
    from_row,
    schema_of,
    tensor_names,
    to_row,
    write_targets,
)
from schemas.records import TargetRecord, TensorRecord
from schemas.targets import METADATA

IDENTITY = {"version": 1, "target": {"kind": "path"}}


def record(number: int = 0, size: int = 8) -> TargetRecord:
    return TargetRecord(
        sample_id=f"{number:032x}", key=f"k{number}", sample=0, source_file="a", source_row=number,
        caption="owl", caption_id="ab" * 16, height=64, width=64, seed=7, noise_hash="cd" * 8,
        sigmas=(1.0, 0.5, 0.0), t5_sequence_length=20, digest="ef" * 16,
        tensors={"u": TensorRecord(bytes=b"x" * size, shape=(size,), dtype="float16")},
    )  # fmt: skip


def test_a_record_is_a_row_and_back() -> None:
    one = record()
    assert from_row(to_row(one), ["u"]) == one


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ({"kind": "cache"}, ("latent",)),
        ({"kind": "cache", "moments": True}, ("moments",)),
        ({"kind": "velocity"}, ("latent", "v_cond")),
        ({"kind": "velocity", "unconditional": True}, ("latent", "v_cond", "v_uncond")),
        ({"kind": "feature", "taps": ["single_blocks.1"]}, ("latent", "tap_single_blocks_1")),
    ],
)
def test_each_kind_has_its_tensors(target: dict[str, object], names: tuple[str, ...]) -> None:
    assert tensor_names(target) == names


def test_a_file_says_who_made_it_and_is_cut_by_its_tensors() -> None:
    file = io.BytesIO()
    size = 3 * 2**20
    carried = pa.field("origin", pa.string())
    rows = [(record(n, size), {"origin": f"o{n}"}) for n in range(12)]
    assert write_targets(file, rows, [carried], IDENTITY) == 12
    parquet = pq.ParquetFile(io.BytesIO(file.getvalue()))
    assert json.loads(parquet.schema_arrow.metadata[METADATA.encode()]) == IDENTITY
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    assert [group.num_rows for group in groups] == [5, 5, 2]
    assert all(group.total_byte_size <= 32 * 2**20 for group in groups)
    table = parquet.read()
    assert table["origin"].to_pylist() == [f"o{n}" for n in range(12)]
    assert from_row(table.slice(3, 1).to_pylist()[0], ["u"]) == record(3, size)
    again = io.BytesIO()
    write_targets(again, rows, [carried], IDENTITY)
    assert again.getvalue() == file.getvalue()


def test_columns_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    schema = schema_of(IDENTITY, [])
    assert schema.names[: len(COLUMNS)] == list(COLUMNS)
    assert schema.names[len(COLUMNS) :] == ["u_bytes", "u_shape", "u_dtype"]


def test_a_digest_depends_on_every_value_and_byte() -> None:
    told = record().model_dump()
    data = {"u": b"x" * 8}
    digest = digest_of(told, data)
    assert digest == digest_of(dict(reversed(told.items())), data)
    assert digest == digest_of(told | {"check_rel": 0.5}, data)  # what a check found is beside it
    for changed in ({"caption": "bee"}, {"sigmas": (1.0, 0.4, 0.0)}, {"seed": 8}):
        assert digest_of(told | changed, data) != digest
    assert digest_of(told, {"u": b"x" * 7 + b"y"}) != digest
