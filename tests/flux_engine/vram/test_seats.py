import torch
from torch import nn

from flux_engine.vram.card import HostCard
from flux_engine.vram.seats import Seat
from flux_engine.vram.store import in_memory
from flux_engine.vram.units import units_of


def seated() -> tuple[nn.Module, Seat, HostCard]:
    model = nn.Linear(3, 2).requires_grad_(False)
    (unit,) = units_of(model)
    return model, Seat("m", unit, in_memory([unit])["rest"]), HostCard()


def test_a_model_sees_its_weights_where_they_are() -> None:
    model, seat, card = seated()
    x, home = torch.ones(1, 3), model.weight.data_ptr()
    expected = model(x)
    seat.bring(card)
    seat.arrived(card)
    assert model.weight.data_ptr() != home
    assert torch.equal(model(x), expected)
    seat.send_home(card)
    assert model.weight.data_ptr() == home
    assert seat.here is None
    assert card.copied == seat.nbytes


def test_changed_weights_are_seen_at_home_and_on_the_card() -> None:
    model, seat, card = seated()
    before = model.weight.clone()
    seat.change({"weight": torch.zeros(2, 3)}, card)
    assert not model.weight.any()
    seat.bring(card)
    seat.arrived(card)
    assert not model.weight.any()
    seat.change(None, card)
    seat.arrived(card)
    assert torch.equal(model.weight, before)
    seat.send_home(card)
    assert torch.equal(model.weight, before)
