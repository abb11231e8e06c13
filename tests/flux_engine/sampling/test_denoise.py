from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flux_engine.latents import position_ids
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.sampling.denoise import Conditions, denoise, guide, modulation_table
from tests.flux_engine.asking import noise

TINY = FluxSpec(
    width=64, heads=2, axes=(4, 14, 14), inner=128, double_blocks=1, single_blocks=2,
    text_width=24, pooled_width=40,
)  # fmt: skip
TEXT = 5
LEVELS = torch.tensor([1.0, 0.7, 0.2, 0.0])


@pytest.fixture
def dit() -> FluxTransformer:
    torch.manual_seed(0)
    return FluxTransformer(TINY).eval().requires_grad_(False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def told(rows: int, cfg: list[float] | None = None) -> Conditions:
    return Conditions(
        text_GTW=noise(1, rows, TEXT, 24),
        pooled_GP=noise(2, rows, 40),
        guidance_G=torch.linspace(1, 4, rows),
        cfg_B=None if cfg is None else torch.tensor(cfg),
    )


class Constant:
    """A transformer whose velocity is the same at every step; negative rows say one less."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype, self.seen = dtype, list[Tensor]()

    def __call__(self, x_GSC: Tensor, text: Tensor, rows: Tensor, turns: Tensor) -> Tensor:
        self.seen.append(x_GSC)
        return torch.full_like(x_GSC, 2.0, dtype=self.dtype) - text[:, :1, :1]


def run(dit: Any, x_BSC: Tensor, conditions: Conditions, **other: Any) -> Tensor:
    table = torch.zeros(3, len(conditions.pooled_GP), 1, 1)
    return denoise(dit, x_BSC, conditions, sigmas=LEVELS, table_NGMD=table,
                   rotation_2LR=torch.empty(0), **other)  # fmt: skip


def sides(positive: int, negative: int, cfg: list[float] | None = None) -> Conditions:
    says = torch.tensor([0.0] * positive + [1.0] * negative)
    return Conditions(
        text_GTW=says[:, None, None], pooled_GP=says[:, None], guidance_G=says,
        cfg_B=None if cfg is None else torch.tensor(cfg),
    )  # fmt: skip


def test_a_constant_velocity_is_followed_all_the_way() -> None:
    x_BSC = noise(0, 2, 4, 8)
    torch.testing.assert_close(run(Constant(), x_BSC, sides(2, 0)), x_BSC - 2.0)


def test_each_row_is_guided_by_its_own_factor() -> None:
    x_BSC = noise(0, 3, 4, 8)
    out = run(Constant(), x_BSC, sides(3, 3, [2.0, 0.5, 1.0]))
    expected = 1.0 + torch.tensor([2.0, 0.5, 1.0])  # negative + factor · (positive - negative)
    torch.testing.assert_close(x_BSC - out, expected[:, None, None].expand_as(x_BSC))


def test_both_sides_of_the_guidance_start_from_the_same_latents() -> None:
    model = Constant()
    run(model, noise(0, 2, 4, 8), sides(2, 2, [2.0, 3.0]))
    assert len(model.seen) == 3
    assert all(torch.equal(*x_GSC.chunk(2)) for x_GSC in model.seen)


def test_a_broken_negative_side_stays_in_its_row() -> None:
    velocity_GSC = noise(0, 4, 2, 3)
    velocity_GSC[3] = float("nan")
    out = guide(velocity_GSC, torch.tensor([2.0, 2.0]))
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_latents_stay_in_float32_between_steps() -> None:
    model = Constant(torch.bfloat16)
    conditions = sides(1, 0)
    half = Conditions(
        text_GTW=conditions.text_GTW.bfloat16(), pooled_GP=conditions.pooled_GP,
        guidance_G=conditions.guidance_G, cfg_B=None,
    )  # fmt: skip
    x_BSC = noise(0, 1, 4, 8)
    out = run(model, x_BSC, half)
    assert {x.dtype for x in model.seen} == {torch.bfloat16}
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x_BSC - 2.0)


def test_progress_sees_every_step_once() -> None:
    seen: list[int] = []

    def watch(steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            seen.append(step)
            yield step

    run(Constant(), noise(0, 1, 4, 8), sides(1, 0), progress=watch)
    assert seen == [0, 1, 2]


def test_the_table_of_all_steps_is_that_of_each_step(dit: FluxTransformer) -> None:
    conditions = told(3)
    table = modulation_table(dit, LEVELS[:-1], conditions)
    assert table.shape == (3, 3, 12 + 2 * 3 + 2, 64)
    for sigma, rows in zip(LEVELS[:-1], table, strict=True):
        condition = dit.condition(sigma.expand(3), conditions.pooled_GP, conditions.guidance_G)
        torch.testing.assert_close(rows, dit.modulate(condition), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_rows_bits_in_the_table_do_not_depend_on_its_place(
    dit: FluxTransformer, rows: int, steps: int
) -> None:
    """MKL's matrix products would see to that for 5, 6, 7, 9, 10 and 11 rows on two threads."""
    same = Conditions(
        text_GTW=torch.empty(0), pooled_GP=noise(0, 1, 40).expand(rows, -1),
        guidance_G=torch.full((rows,), 3.5), cfg_B=None,
    )  # fmt: skip
    table = modulation_table(dit, torch.full((steps,), 0.6), same).flatten(0, 1)
    assert len(table) == steps * rows
    assert torch.equal(table, table[:1].expand_as(table))


def test_no_graph_is_kept_even_where_weights_could_be_trained(dit: FluxTransformer) -> None:
    dit.requires_grad_(True)
    conditions = told(2)
    table = modulation_table(dit, LEVELS[:-1], conditions)
    out = denoise(
        dit,
        noise(3, 2, 4, 64),
        conditions,
        sigmas=LEVELS,
        table_NGMD=table,
        rotation_2LR=dit.rotation(position_ids(TEXT, 4, 4)),
    )
    assert not table.requires_grad
    assert not out.requires_grad
