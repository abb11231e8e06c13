"""What exporters read, and what they refuse."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from batch.errors import ExportError, TargetsError
from batch.targets.dataset import TargetDataset
from batch.targets.export.source import OneSchedule, as_type, end_of, source, told_of
from tests.batch.targets.made import BUCKETS, Targets

CARRIED: dict[str, Any] = {"pair": ("tensors", "text"), "path": ("states",)}


def test_rows_come_by_size_in_the_datasets_order(targets: Targets) -> None:
    rows = source(str(targets("pair")), "tiny", CARRIED)
    assert {bucket: len(numbers) for bucket, numbers in rows.buckets()} == BUCKETS
    for _, numbers in rows.buckets():
        assert [row.number for row in rows.rows(numbers)] == sorted(numbers)


@pytest.mark.parametrize("name", ["cache", "velocity", "feature"])
def test_a_kind_that_is_not_carried_is_named(targets: Targets, name: str) -> None:
    with pytest.raises(
        ExportError, match=f"holds {name} targets, which tiny cannot carry; it takes pair and path"
    ):
        source(str(targets(name)), "tiny", CARRIED)


def test_texts_that_are_not_there_are_missed(targets: Targets) -> None:
    with pytest.raises(ExportError, match="has no texts, which tiny needs: distil it with"):
        source(str(targets("textless")), "tiny", CARRIED)
    source(str(targets("textless")), "tiny", {"pair": ("tensors",)})


def test_a_row_that_is_not_as_it_was_written_stops_an_export(
    targets: Targets, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(targets("pair"), tmp_path / "changed"))
    path = min((folder / "data").iterdir())
    table = pq.read_table(path)
    place = table.schema.get_field_index("latent_bytes")
    data = [bytes(512 * 4), *table.column(place).to_pylist()[1:]]
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(data, field.type)), path)
    rows = source(str(folder), "tiny", CARRIED)
    with pytest.raises(TargetsError, match="row 0: has digest"):
        list(rows.rows([0]))


def test_the_end_is_the_latent_or_the_last_state(targets: Targets) -> None:
    pair, path = TargetDataset(targets("pair"))[0], TargetDataset(targets("path"))[0]
    assert torch.equal(end_of(pair), pair.tensors["latent"])
    assert path.states is not None
    assert torch.equal(end_of(path), path.states[-1])


def test_rows_of_another_schedule_are_named(targets: Targets) -> None:
    row = TargetDataset(targets("path"))[0]
    schedule = OneSchedule()
    schedule.add(row)
    schedule.add(row)
    assert schedule.sigmas == row.record.sigmas
    record = row.record.model_copy(update={"sigmas": (1.0, 0.0)})
    with pytest.raises(ExportError, match=r"row 3 \(row 0\) has the noise levels \[1\.0, 0\.0\]"):
        schedule.add(replace(row, number=3, record=record))


def test_values_that_a_type_has_not_are_named(targets: Targets) -> None:
    row = TargetDataset(targets("pair"))[0]
    assert as_type(torch.ones(2), torch.float16, "it", row).dtype == torch.float16
    with pytest.raises(ExportError, match=r"row 0 \(row 0\): it has values up to 70000"):
        as_type(torch.tensor([7e4]), torch.float16, "it", row)


def test_what_is_told_of_a_row_is_plain(targets: Targets) -> None:
    row = TargetDataset(targets("pair"))[1]
    told = told_of(row)
    assert told["caption"] == row.record.caption
    assert told["carried"] == {"origin": "place 1"}
    assert "tensors" not in told
