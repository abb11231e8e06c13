import torch

from flux_engine.sampling.denoise import Conditions
from flux_engine.tables import Tables
from flux_engine.vram.residency import Residency
from tests.flux_engine.vram.streaming import TABLES, rooms, small_dit, staged

SIGMAS = torch.tensor([1.0, 0.7, 0.3])


def told(seed: int) -> Conditions:
    draw = torch.Generator().manual_seed(seed)
    return Conditions(
        text_GTW=torch.zeros(2, 1, 24),
        pooled_GP=torch.randn(2, 16, generator=draw),
        guidance_G=torch.ones(2),
        cfg_B=None,
    )


def test_makers_that_pass_through_make_tables_for_the_batches_ahead() -> None:
    dit = small_dit()
    plain = Tables(dit, Residency({"dit": dit}))
    plain.ahead = [[1], [2]]
    expected = [plain.next(SIGMAS, told(i), lambda batch: told(batch[0])) for i in range(3)]
    room, card = rooms(dit := small_dit())
    with room.phase(staged(frozenset(), 2)):
        tables = Tables(dit, room)
        tables.ahead = [[1], [2]]
        for i in range(3):
            table = tables.next(SIGMAS, told(i), lambda batch: told(batch[0]))
            assert torch.equal(table, expected[i])
            assert card.copies == 1 + len(TABLES)  # with the rest, and all of them once
        tables.next(SIGMAS, told(0), lambda batch: told(batch[0]))
        tables.forget()
        tables.ahead = []
        assert torch.equal(tables.next(SIGMAS, told(1), told), expected[1])  # type: ignore[arg-type]
    assert card.copies == 1 + 3 * len(TABLES)


def test_makers_that_stay_make_each_table_in_its_turn() -> None:
    room, _ = rooms(dit := small_dit())
    with room.phase(staged(frozenset(TABLES), 2)):
        tables = Tables(dit, room)
        tables.ahead = [[1]]
        tables.next(SIGMAS, told(0), lambda _: told(1))
        assert not tables._made
