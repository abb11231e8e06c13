"""Checkpoints are whole or not there."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from batch.errors import OutputError
from batch.storage import Storage
from batch.training.checkpoint import COMPLETE, FOLDER, Checkpoint, Checkpoints, folder_of
from flux_engine.training.optimizer import make_optimizer, restore_state, state_of
from flux_engine.training.stepper import TrainingState
from tests.batch.s3 import CREDENTIALS, serving


def made(step: int) -> Checkpoint:
    state = TrainingState(
        trainable={"layer.lora_A": torch.full((2, 3), float(step))},
        optimizer={
            "layer.lora_A|exp_avg": torch.arange(6.0).view(2, 3) / 7,
            "layer.lora_A|step": torch.tensor(3.0),
        },
        average={},
        told={"fields": {}, "groups": [{"lr": 1e-4, "betas": [0.9, 0.999]}], "on_host": []},
    )
    return Checkpoint(step, state, {"skipped": 1, "seconds": 2.5})


def equal(one: Checkpoint | None, other: Checkpoint) -> bool:
    assert one is not None
    parts = [(getattr(one.state, p), getattr(other.state, p)) for p in PARTS]
    return (
        (one.step, one.told, one.state.told) == (other.step, other.told, other.state.told)
        and all(a.keys() == b.keys() for a, b in parts)
        and all(torch.equal(a[name], b[name]) for a, b in parts for name in a)
    )


PARTS = ("trainable", "optimizer", "average")


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage(str(tmp_path / "out"))
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with serving() as server:
            yield Storage(server.uri("out"))


def test_a_checkpoint_comes_back_bit_by_bit_and_the_last_ones_are_kept(storage: Storage) -> None:
    checkpoints = Checkpoints(storage, keep=2)
    assert checkpoints.latest() is None
    for step in (2, 4, 6):
        checkpoints.write(made(step))
    assert checkpoints.steps() == [4, 6]
    assert equal(checkpoints.latest(), made(6))
    assert storage.folders(FOLDER) == ["step-00000004", "step-00000006"]


def test_a_torn_one_is_passed_over_and_named(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(storage)
    checkpoints.write(made(2))
    checkpoints.write(made(4))
    storage.remove(f"{folder_of(4)}/{COMPLETE}")
    with caplog.at_level(logging.WARNING):
        assert equal(checkpoints.latest(), made(2))
    assert "torn checkpoint" in caplog.text
    assert caplog.records[0].checkpoint == "step-00000004"  # type: ignore[attr-defined]
    checkpoints.write(made(4))  # in the place of the torn one
    assert equal(checkpoints.latest(), made(4))


def damage(storage: Storage, name: str) -> None:
    data = bytearray(storage.read(name))
    data[-1] ^= 1
    storage.replace(name, bytes(data))


def test_a_damaged_one_is_written_again_and_until_then_costs_no_other(storage: Storage) -> None:
    checkpoints = Checkpoints(storage, keep=1)
    checkpoints.write(made(2))
    checkpoints.write(made(6))
    damage(storage, f"{folder_of(6)}/trainable.safetensors")
    assert checkpoints.latest() is None
    assert checkpoints.last() == (0 if storage.local else 6)
    checkpoints.write(made(4))  # of a run that began again
    assert equal(checkpoints.latest(), made(4))
    checkpoints.write(made(6))
    assert equal(checkpoints.latest(), made(6))
    assert checkpoints.steps() == [6]


def test_a_sound_one_stays_as_it_is(storage: Storage) -> None:
    checkpoints = Checkpoints(storage)
    checkpoints.write(made(2))
    other = made(2)
    checkpoints.write(Checkpoint(2, other.state, {"skipped": 7}))
    assert equal(checkpoints.latest(), other)


@pytest.mark.parametrize("file", ["trainable.safetensors", "state.json"])
def test_a_file_that_is_not_as_it_was_written_makes_the_one_before_it_count(
    storage: Storage, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(storage)
    checkpoints.write(made(2))
    checkpoints.write(made(4))
    damage(storage, f"{folder_of(4)}/{file}")
    with caplog.at_level(logging.WARNING):
        assert equal(checkpoints.latest(), made(2))
    assert "damaged checkpoint" in caplog.text


def test_another_layout_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    checkpoints = Checkpoints(storage)
    checkpoints.write(made(2))
    folder = tmp_path / folder_of(2)
    told = json.loads((folder / "state.json").read_text()) | {"version": 2}
    (folder / "state.json").write_text(json.dumps(told))
    sums = json.loads((folder / COMPLETE).read_text())
    from batch.training.checkpoint import sum_of

    sums["state.json"] = sum_of(folder / "state.json")
    (folder / COMPLETE).write_text(json.dumps(sums))
    with pytest.raises(OutputError, match="has layout 2"):
        checkpoints.latest()


def test_what_a_fallen_writer_left_is_not_in_the_way(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "_run" / "tmp" / "tmpabc" / "part-1").mkdir(parents=True)
    (tmp_path / FOLDER / "elsewhere").mkdir(parents=True)
    Checkpoints(storage).write(made(2))
    assert Checkpoints(storage).steps() == [2]


MEASURED = """
import resource, sys
import torch
from batch.storage import Storage
from batch.training.checkpoint import Checkpoint, Checkpoints
from flux_engine.training.stepper import TrainingState

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

held = {str(i): torch.ones(2**20, 8) for i in range(8)}  # 32 MiB each
state = TrainingState({}, held, {}, {})
before = most()
checkpoints = Checkpoints(Storage(sys.argv[1]))
checkpoints.write(Checkpoint(1, state, {}))
found = checkpoints.latest()
print(most() - before)
assert found.state.optimizer.keys() == held.keys()
"""


def test_a_part_is_written_and_opened_without_another_copy_of_it(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert int(told.stdout) < 100  # MiB; the part has 256


def test_what_was_read_stays_when_its_files_are_gone(storage: Storage) -> None:
    checkpoints = Checkpoints(storage)
    checkpoints.write(made(2))
    found = checkpoints.latest()
    storage.remove_folder(folder_of(2))
    assert equal(found, made(2))


def test_the_state_of_an_optimizer_in_eight_bits_goes_through_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    held = {name: nn.Parameter(torch.randn(64, 128)) for name in ("a", "b")}

    def optimizer() -> torch.optim.Optimizer:
        return make_optimizer("adamw8bit", held, rate=1e-3, weight_decay=0.0)

    first = optimizer()
    for parameter in held.values():
        parameter.grad = torch.ones_like(parameter)
    first.step()
    tensors, told = state_of(first, held)
    checkpoints = Checkpoints(Storage(str(tmp_path)))
    checkpoints.write(Checkpoint(1, TrainingState(dict(held), tensors, {}, told), {}))
    found = checkpoints.latest()
    assert found is not None
    second = optimizer()
    restore_state(second, held, found.state.optimizer, found.state.told)
    again, _ = state_of(second, held)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
