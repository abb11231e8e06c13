"""A checkpoint gives back the bits that it was given, and only ever exists whole."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shapes import checkpoint
from shapes.checkpoint import Checkpoint


def trained(steps: int) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(1)
    net = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        net(torch.randn(4, 3)).square().mean().backward()
        optimiser.step()
    return net, optimiser


def kept(path: Path, steps: int) -> Checkpoint:
    net, optimiser = trained(steps)
    average = {name: p.detach() / 3 for name, p in net.named_parameters()}
    made = Checkpoint.of(steps, 12.3456789, net, average, optimiser)
    made.write(path)
    return made


def test_everything_comes_back_bit_by_bit(tmp_path: Path) -> None:
    made = kept(tmp_path / "a.safetensors", steps=3)
    again = Checkpoint.read(tmp_path / "a.safetensors")
    assert (again.step, again.seconds) == (3, 12.3456789)
    for name in ("net", "average", "moments"):
        before, after = getattr(made, name), getattr(again, name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_restored_optimiser_goes_on_where_it_was(tmp_path: Path) -> None:
    kept(tmp_path / "a.safetensors", steps=3)
    net, optimiser = trained(0)
    Checkpoint.read(tmp_path / "a.safetensors").restore(net, optimiser)
    other, its = trained(3)
    for one, mine in ((net, optimiser), (other, its)):
        mine.zero_grad()
        one(torch.ones(2, 3)).square().mean().backward()
        mine.step()
    assert torch.equal(net.weight, other.weight)


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    kept(tmp_path / "a.safetensors", steps=0)
    again = Checkpoint.read(tmp_path / "a.safetensors")
    assert again.moments == {}
    again.restore(*trained(0))


def test_a_failed_write_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    kept(path, steps=1)

    def full(tensors: object, partial: Path, metadata: object) -> None:
        partial.write_bytes(b"half")
        raise SafetensorError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SafetensorError):
        kept(path, steps=2)
    assert Checkpoint.read(path).step == 1


def test_the_step_is_read_without_the_tensors(tmp_path: Path) -> None:
    kept(tmp_path / "a.safetensors", steps=2)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"step": "2", "cpu_s": "12.3456789"}
