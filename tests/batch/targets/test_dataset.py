"""Rows of targets by number, and everything that belongs to them."""

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from batch.errors import TargetsError
from batch.targets.dataset import TargetDataset, TargetRow
from batch.targets.identity import IdentityError
from batch.targets.noise import NoiseError, hash_of, noise_of
from batch.targets.text import TextError
from tests.batch.targets.made import CAPTIONS, TARGETS, Targets


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What the files hold, in their order."""
    paths = sorted((folder / "data").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def changed(targets: Targets, tmp_path: Path, name: str, **columns: Any) -> Path:
    """A copy whose first row has other values."""
    folder = Path(shutil.copytree(targets(name), tmp_path / "changed"))
    path = min((folder / "data").iterdir())
    table = pq.read_table(path)
    for column, value in columns.items():
        place = table.schema.get_field_index(column)
        field = table.schema.field(place)
        values = [value, *table.column(place).to_pylist()[1:]]
        table = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(table, path)
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_every_row_is_what_the_files_hold_and_is_proved(targets: Targets, name: str) -> None:
    dataset = TargetDataset(targets(name), verify=True)
    told = rows_of(targets(name))
    assert len(dataset) == len(told) == 8
    for row, values in zip((dataset[i] for i in range(8)), told, strict=True):
        assert row.record.sample_id == values["sample_id"].hex()
        assert row.record.caption == values["caption"]
        assert row.record.t5_sequence_length == 20
        assert row.record.seed == values["seed"]
        assert list(row.record.sigmas) == values["sigmas"]
        assert row.carried == {"origin": values["origin"]}
        assert tuple(row.tensors) == dataset.names
        for tensor, found in row.tensors.items():
            assert str(found.dtype) == f"torch.{values[f'{tensor}_dtype']}"
            assert list(found.shape) == values[f"{tensor}_shape"]
            assert found.view(torch.uint8).numpy().tobytes() == values[f"{tensor}_bytes"]


def test_noise_is_drawn_again(targets: Targets) -> None:
    row = TargetDataset(targets("pair"))[5]
    assert row.noise is not None
    assert row.noise.shape == row.tensors["latent"].shape == (16, 4, 8)
    assert row.record.seed is not None
    assert torch.equal(row.noise, noise_of(row.record.seed, (16, 4, 8)))
    assert hash_of(row.noise) == row.record.noise_hash


@pytest.mark.parametrize("name", ["velocity", "feature"])
def test_each_noise_level_has_a_noise(targets: Targets, name: str) -> None:
    row = TargetDataset(targets(name))[0]
    assert row.noise is not None
    assert len(row.noise) == len(row.record.t) == len(row.record.t_noise_hash)
    assert [hash_of(noise) for noise in row.noise] == list(row.record.t_noise_hash)


@pytest.mark.parametrize("name", ["pair", "path"])
def test_noise_of_another_hash_is_named_with_file_and_row(
    targets: Targets, tmp_path: Path, name: str
) -> None:
    folder = changed(targets, tmp_path, name, noise_hash=bytes(8))
    dataset = TargetDataset(folder)
    dataset[1]
    with pytest.raises(NoiseError, match=r"rows-00000000-64x64-.*\.parquet row 0: noise of seed"):
        dataset[0]
    TargetDataset(folder, parts=("tensors", "text"))[0]


def test_texts_come_from_the_table_once_a_caption(targets: Targets) -> None:
    dataset = TargetDataset(targets("pair"), parts=("text",))
    rows = [dataset[i] for i in range(8)]
    assert [row.text and row.text.caption for row in rows] == [row.record.caption for row in rows]
    assert sorted(row.record.caption for row in rows) == sorted(CAPTIONS)
    assert len(dataset.texts) == len(set(CAPTIONS))
    assert {row.negative for row in rows} == {None}


@pytest.mark.parametrize("name", ["guided", "velocity"])
def test_negative_captions_have_texts_too(targets: Targets, name: str) -> None:
    row = TargetDataset(targets(name))[2]
    assert row.text is not None
    assert row.negative is not None
    assert row.negative.caption == row.record.negative_caption != row.text.caption
    assert row.negative.t5.shape == row.text.t5.shape


def test_a_caption_without_a_text_is_named(targets: Targets, tmp_path: Path) -> None:
    folder = changed(targets, tmp_path, "pair", caption="a fox", caption_id=bytes(16))
    with pytest.raises(TextError, match=r"\.parquet row 0: its caption 'a fox' \(0+\) has no text"):
        TargetDataset(folder)[0]
    TargetDataset(folder, parts=("tensors", "noise"))[0]


def test_another_captions_text_is_refused(targets: Targets, tmp_path: Path) -> None:
    folder = changed(targets, tmp_path, "pair", caption="a fox")
    with pytest.raises(TextError, match="is 'a fox', and the text of that id is 'a large red"):
        TargetDataset(folder)[0]


def test_states_begin_at_the_noise_and_follow_the_velocities(targets: Targets) -> None:
    row = TargetDataset(targets("path"))[0]
    assert row.states is not None
    assert row.noise is not None
    assert row.states.shape == (5, 16, 8, 8)
    assert row.states.dtype == torch.float32
    assert torch.equal(row.states[0], row.noise)
    steps = torch.tensor(row.record.sigmas).diff().reshape(4, 1, 1, 1)
    assert torch.allclose(row.states.diff(dim=0), steps * row.tensors["u"].float(), atol=1e-6)


@pytest.mark.parametrize(("name", "most"), [("path16", 1e-3), ("pathbf16", 3e-3)])
def test_states_and_velocities_of_stored_types_are_those_of_float32(
    targets: Targets, name: str, most: float
) -> None:
    truth, stored = TargetDataset(targets("path32")), TargetDataset(targets(name))
    for wanted, found in zip(truth, stored, strict=False):
        assert len(wanted.record.sigmas) == 29
        for a, b in ((wanted.states, found.states), (wanted.tensors["u"], found.tensors["u"])):
            assert a is not None
            assert b is not None
            error = (a.float() - b.float()).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)
            assert error.max() < most


def test_the_end_of_a_path_is_the_pairs_latent(targets: Targets, tmp_path: Path) -> None:
    pair = TargetDataset(targets("pair32"))
    row = pair[0]
    assert row.noise is not None
    path = TargetDataset(targets("path32"))[0]
    assert path.states is not None
    assert path.record.seed == row.record.seed
    assert torch.equal(path.states[0], row.noise)


def test_nothing_is_read_or_drawn_for_nothing(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("batch.targets.dataset.checked", nobody)
    monkeypatch.setattr("batch.targets.dataset.TextTable", nobody)
    for parts in ((), ("tensors",)):
        dataset = TargetDataset(targets("path"), parts=parts)  # type: ignore[arg-type]
        row = dataset[0]
        assert (row.noise, row.states, row.text) == (None, None, None)
        assert ("u_bytes" in dataset._groups.columns) == bool(parts)


def test_states_alone_bring_neither_velocities_nor_noise(targets: Targets) -> None:
    row = TargetDataset(targets("path"), parts=("states",))[0]
    assert row.states is not None
    assert (row.tensors, row.noise, row.text) == ({}, None, None)


def test_some_of_the_tensors_can_be_chosen(targets: Targets) -> None:
    dataset = TargetDataset(targets("velocity"), parts=("tensors",), tensors=("v_cond",))
    assert tuple(dataset[0].tensors) == ("v_cond",)
    assert "latent_bytes" not in dataset._groups.columns


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cache", {"parts": ("noise",)}, "cache targets here are without noise; they have tensors"),
        ("pair", {"parts": ("states",)}, "pair targets here are without states"),
        ("textless", {"parts": ("text",)}, "are without text"),
        ("pair", {"parts": ("noises",)}, r"parts \['noises'\] are unknown"),
        ("pair", {"tensors": ("u",)}, "without the tensors u; they have latent"),
        ("pair", {"parts": (), "tensors": ("latent",)}, "latent are named and not among the parts"),
    ],
)
def test_what_a_dataset_has_not_is_refused(
    targets: Targets, name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TargetsError, match=words):
        TargetDataset(targets(name), **options)


def test_an_identity_that_is_wanted_is_compared_at_any_depth(targets: Targets) -> None:
    folder = targets("pair")
    identity = TargetDataset(folder).identity
    TargetDataset(folder, identity={"teacher": {"dtype": "float32"}, "noise": identity["noise"]})
    TargetDataset(folder, identity=identity)
    wanted = {
        "teacher": {"dtype": "bfloat16", "weights": identity["teacher"]["weights"]},
        "text": {"t5": {"model.safetensors": "0"}},
        "colour": "red",
    }
    with pytest.raises(IdentityError) as error:
        TargetDataset(folder, identity=wanted)
    told = str(error.value)
    assert "teacher.dtype is 'float32' and 'bfloat16'" in told
    assert "text.t5.model.safetensors is" in told
    assert "colour is 'red' on one side only" in told
    assert "weights" not in told


def test_texts_of_other_encoders_are_refused(targets: Targets, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(targets("pair"), tmp_path / "mixed"))
    for path in (folder / "text").iterdir():
        path.unlink()
    for path in targets("pathbf16").glob("text/*.arrow"):
        shutil.copy(path, folder / "text")
    with pytest.raises(IdentityError, match=r"stored is 'bfloat16' and 'float16'"):
        TargetDataset(folder, partial=True)[0]


@pytest.mark.parametrize(
    ("column", "value"), [("caption", "a fox"), ("sigmas", [1.0, 0.0]), ("latent_bytes", None)]
)
def test_a_changed_value_is_found_on_request(
    targets: Targets, tmp_path: Path, column: str, value: Any
) -> None:
    if column == "latent_bytes":
        data = bytearray(rows_of(targets("pair"))[0][column])
        data[7] ^= 1
        value = bytes(data)
    folder = changed(targets, tmp_path, "pair", **{column: value})
    TargetDataset(folder, parts=("tensors", "noise"))[0]
    dataset = TargetDataset(folder, parts=(), verify=True)
    with pytest.raises(TargetsError, match=r"rows-0.*\.parquet row 0: has digest"):
        dataset[0]
    dataset[1]


def test_rows_that_are_not_there_are_an_index_error(targets: Targets) -> None:
    dataset = TargetDataset(targets("pair"), parts=())
    assert dataset[-1].number == 7
    for number in (8, -9):
        with pytest.raises(IndexError):
            dataset[number]


def test_sizes_are_known_without_reading(targets: Targets) -> None:
    dataset = TargetDataset(targets("pair"))
    sizes = [dataset.bucket(i) for i in range(8)]
    assert {b: rows.tolist() for b, rows in dataset.buckets().items()} == {
        (32, 64): [4, 5, 6],
        (64, 64): [0, 1, 2, 3, 7],
    }
    assert sizes == [(64, 64)] * 4 + [(32, 64)] * 3 + [(64, 64)]
    assert dataset.row_groups().tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert dataset._groups.read == 0
    rows = [dataset[i].record for i in range(8)]
    assert sizes == [(row.height, row.width) for row in rows]


def test_a_batch_reads_each_row_group_once(targets: Targets) -> None:
    dataset = TargetDataset(targets("pair"), cache_bytes=1)
    rows = dataset.__getitems__([7, 0, 4, 1, 5, 0])
    assert [row.number for row in rows] == [7, 0, 4, 1, 5, 0]
    assert dataset._groups.read == 3


def same(one: TargetRow, other: TargetRow) -> bool:
    assert one.noise is not None
    assert other.noise is not None
    assert one.text is not None
    assert other.text is not None
    return (
        one.record == other.record
        and torch.equal(one.tensors["latent"], other.tensors["latent"])
        and torch.equal(one.noise, other.noise)
        and torch.equal(one.text.t5, other.text.t5)
    )


def test_a_dataset_travels_without_handles(targets: Targets) -> None:
    dataset = TargetDataset(targets("pair"))
    first = dataset[0]
    assert same(first, pickle.loads(pickle.dumps(dataset))[0])


def alone(rows: list[TargetRow]) -> TargetRow:
    return rows[0]


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_loader_read_the_same(targets: Targets, method: str, workers: int) -> None:
    dataset = TargetDataset(targets("pair"))
    here = [dataset[i] for i in range(8)]  # opened before the workers are
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=workers,
        collate_fn=alone,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    for one, other in zip(here, loader, strict=True):
        assert same(one, other)


def test_a_trainer_needs_neither_ray_nor_text_encoders() -> None:
    code = (
        "import sys, batch.targets.dataset, batch.targets.batches\n"
        "print([name for name in ('ray', 'transformers', 'boto3') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_the_identity_is_the_manifests(targets: Targets) -> None:
    manifest = json.loads((targets("pair") / "manifest.json").read_text())
    assert TargetDataset(targets("pair")).identity == manifest["identity"]
