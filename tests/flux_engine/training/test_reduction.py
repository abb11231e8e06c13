"""Several ranks are processes of this machine, which meet over gloo."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from flux_engine.training import reduction
from flux_engine.training.reduction import Alone, Ordered, Reduction, Summed, parts

MICRO_BATCHES = 4


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def parameters() -> list[nn.Parameter]:
    shapes = [(7, 3), (5,), (2, 2), (3,)]
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


def gradients(reduced: Reduction, held: list[nn.Parameter]) -> None:
    """Each micro-batch's own numbers, of sizes that make the order of a sum visible; the last
    parameter but one is used by micro-batch 1 alone, the last one by none."""
    for number in range(reduced.rank, MICRO_BATCHES, reduced.world):
        generator = torch.Generator().manual_seed(number)
        for parameter in held[:-2] if number != 1 else held[:-1]:
            drawn = torch.randn(parameter.shape, generator=generator) * 10.0**number
            parameter.grad = drawn if parameter.grad is None else parameter.grad + drawn
        reduced.after_backward(held)
    reduced.finish(held)


def rank_of(rank: int, world: int, port: int, kind: str, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    reduction.CHUNK = 64  # several pieces
    held = parameters()
    make = Ordered if kind == "ordered" else Summed
    reduced = make(torch.device("cpu"), MICRO_BATCHES)
    for _ in ("a step", "another"):
        for parameter in held:
            parameter.grad = None
        gradients(reduced, held)
    told = {
        "grads": [p.grad.tolist() for p in held if p.grad is not None],
        "gathered": reduced.gathered([float(i) for i in range(rank, MICRO_BATCHES, world)]),
        "names": reduced.names([f"row of {rank}"]),
        "most": reduced.most([float(rank), -1.5 - rank]),
        "any": [reduced.any(mine=rank == 1), reduced.any(mine=False)],
    }
    Path(out, f"{kind}-{world}-{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def ran(kind: str, world: int, folder: Path) -> list[dict[str, object]]:
    args = (world, free_port(), kind, str(folder))
    multiprocessing.spawn(rank_of, args=args, nprocs=world)
    told = [folder / f"{kind}-{world}-{rank}.json" for rank in range(world)]
    return [json.loads(file.read_text()) for file in told]


@pytest.mark.parametrize("world", [2, 3, 4, 5])
def test_gradients_in_order_are_the_same_bits_for_one_rank_and_for_several(
    tmp_path: Path, world: int
) -> None:
    alone = parameters()
    gradients(Alone(), alone)
    wanted = [p.grad.tolist() for p in alone if p.grad is not None]
    assert wanted[3:] == [[0.0] * 3]
    for told in ran("ordered", world, tmp_path):
        assert told["grads"] == wanted
        assert told["gathered"] == [0.0, 1.0, 2.0, 3.0]
        assert told["names"] == [f"row of {rank}" for rank in range(world)]
        assert told["any"] == [True, False]
        assert told["most"] == [world - 1.0, -1.5]


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_that_are_summed_differ_by_rounding_alone(tmp_path: Path, world: int) -> None:
    alone = parameters()
    gradients(Alone(), alone)
    first, second, *_ = ran("summed", world, tmp_path)
    assert first["grads"] == second["grads"]
    assert second["gathered"] == [0.0, 1.0, 2.0, 3.0]
    for parameter, found in zip(alone, first["grads"], strict=True):  # type: ignore[call-overload]
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.tensor(found), rtol=1e-6, atol=1e-3)


def test_pieces_hold_one_type_and_no_more_than_a_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "CHUNK", 40)
    held = [nn.Parameter(torch.zeros(n)) for n in (4, 6, 1, 20, 1)]
    held.append(nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)))
    assert [[p.numel() for p in part] for part in parts(held)] == [[4, 6], [1], [20], [1], [1]]
