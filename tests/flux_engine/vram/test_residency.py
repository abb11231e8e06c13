from contextlib import nullcontext

import pytest
import torch
from torch import nn

from flux_engine.errors import SettingError
from flux_engine.vram.residency import GIB, Residency, fits, weight_bytes
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import asked

CARD = torch.device("meta")  # not the host; what is free and total on it is made up
needs_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model(gib: float) -> nn.Module:
    """Weights of so many GiB, which are not there."""
    with torch.device("meta"):
        return nn.Linear(int(gib * GIB / 4), 1, bias=False)


class Moves(Residency):
    """Writes down who comes and goes, and carries nobody."""

    log: list[str]

    def _bring(self, name: str) -> None:
        self.log.append(f"+{name}")
        self._here.add(name)

    def _send_home(self, name: str) -> None:
        self.log.append(f"-{name}")
        self._here.discard(name)


@pytest.fixture(autouse=True)
def _a_card_of_40_gib(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "gpu" not in request.keywords:
        memory = (int(30 * GIB), int(40 * GIB))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: memory)


def residency(vram_limit: float | None, **gib: float) -> Moves:
    moves = Moves({name: model(size) for name, size in gib.items()}, CARD, vram_limit)
    moves.log = []
    return moves


def test_weights_are_counted_once_and_in_their_type() -> None:
    shared = nn.Linear(10, 10)
    both = nn.Sequential(shared, shared)
    assert weight_bytes(both) == 110 * 4
    assert weight_bytes(both.bfloat16()) == 110 * 2
    both.register_buffer("positions", torch.zeros(5, dtype=torch.int64))
    assert weight_bytes(both) == 110 * 2 + 40


def test_a_quarter_of_the_limit_is_for_activations() -> None:
    assert fits({"dit": 22, "t5": 8}, 40)
    assert not fits({"dit": 22, "t5": 9}, 40)


@pytest.mark.parametrize(
    ("vram_limit", "all_fit"),
    [
        (None, True),  # 30 GiB are free
        (28.0, True),
        (26.0, False),
        (-12.0, True),  # all of 40 but 12
        (-14.0, False),
    ],
)
def test_a_limit_is_what_is_free_or_asked_for_or_the_card_but_so_much(
    vram_limit: float | None, all_fit: bool
) -> None:
    assert residency(vram_limit, dit=16, t5=4.5).all_fit is all_fit


def test_no_limit_makes_a_card_larger() -> None:
    assert not residency(1000.0, dit=22, t5=9).all_fit


def test_where_all_fit_each_comes_once_and_stays() -> None:
    card = residency(None, dit=10, t5=5, vae=1)
    for names in (("t5",), ("vae",), ("dit",), ("vae",), ("t5",)):
        with card.phase(*names):
            pass
    assert card.log == ["+t5", "+vae", "+dit"]


def test_where_they_do_not_fit_a_phase_sends_the_others_away_first() -> None:
    card = residency(None, dit=20, t5=9, vae=1)
    for names in (("t5",), ("dit",), ("dit",), ("vae",)):
        with card.phase(*names):
            pass
    assert card.log == ["+t5", "-t5", "+dit", "-dit", "+vae"]


def test_a_phase_names_all_that_it_needs() -> None:
    card = residency(None, dit=22, clip=1, t5=9)
    with card.phase("clip", "t5"):
        assert sorted(card.log) == ["+clip", "+t5"]
    with card.phase("t5", "dit"):
        assert card.log[2:] == ["-clip", "+dit"]


@pytest.mark.parametrize("vram_limit", [20.0, -20.0, 0.0])
def test_a_model_that_cannot_be_on_the_card_is_refused_with_the_numbers(vram_limit: float) -> None:
    limit = vram_limit if vram_limit >= 0 else 40 + vram_limit
    told = rf"dit needs 22\.0 GiB of weights on the card and the limit is {limit:.1f} GiB"
    with pytest.raises(SettingError, match=told):
        residency(vram_limit, dit=22, t5=9)


def test_on_the_host_nothing_moves() -> None:
    moves = Moves({"dit": model(100)}, torch.device("cpu"), vram_limit=1.0)
    moves.log = []
    assert moves.all_fit
    with moves.phase("dit"):
        pass
    assert moves.log == []


class Rooms:
    """Stands for a residency in an engine, and writes down which phases are entered."""

    def __init__(self, *, roomy: bool) -> None:
        self.roomy = roomy
        self.phases: list[tuple[str, ...]] = []

    def fit(self, *names: str) -> bool:
        return self.roomy

    def phase(self, *names: str) -> "nullcontext[None]":
        self.phases.append(names)
        return nullcontext()


def test_the_engine_brings_in_only_whom_it_needs(
    shapes_engine: ShapesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = shapes_engine()
    rooms = Rooms(roomy=False)
    monkeypatch.setattr(engine, "residency", rooms)
    first = asked("a prompt that nobody has asked for")
    engine.generate([first])
    assert rooms.phases == [("clip", "t5"), ("dit",), ("vae",)]
    engine.generate([first])
    assert rooms.phases[3:] == [("dit",), ("vae",)]  # its text is known
    engine.generate([asked(first.prompt, input_image=torch.zeros(3, 64, 64))])
    assert rooms.phases[5:] == [("vae",), ("dit",), ("vae",)]
    monkeypatch.setattr(engine, "residency", rooms := Rooms(roomy=True))
    engine.generate([first] * 4)
    assert rooms.phases == [("dit", "vae")]  # nothing is left to decode afterwards
    engine.generate([first] * 3)
    assert rooms.phases[1:] == [("dit", "vae"), ("vae",)]


def test_what_fits_together_is_asked_by_name() -> None:
    card = residency(40.0, dit=21, t5=9, vae=1)
    assert not card.fit("dit", "t5", "vae")
    assert card.fit("dit", "vae")


def places(model: nn.Module) -> set[tuple[str, int]]:
    return {(t.device.type, t.data_ptr()) for t in (*model.parameters(), *model.buffers())}


def test_weights_are_overridden_and_come_back_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    home = places(model)
    rooms = Residency({"dit": model}, torch.device("cpu"))
    other = torch.randn(4, 4)
    rooms.override("dit", {"0.weight": other})
    rooms.override("dit", {"1.bias": torch.zeros(4)})
    assert torch.equal(model[0].weight, other)
    assert torch.equal(model[0](torch.ones(1, 4)), torch.nn.functional.linear(
        torch.ones(1, 4), other, before["0.bias"]
    ))  # fmt: skip
    assert torch.equal(rooms.stored("dit", "0.weight"), before["0.weight"])
    rooms.restore("dit")
    assert places(model) == home
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"0.wait": torch.zeros(4, 4)}, r"no such weights: 0\.wait$"),
        ({"0.weight": torch.zeros(4, 5)}, r"0\.weight \(\[4, 5\] float32 for \[4, 4\] float32\)"),
        ({"0.bias": torch.zeros(4).half()}, r"0\.bias \(\[4\] float16 for \[4\] float32\)"),
    ],
)
def test_overrides_that_do_not_fit_are_named_and_nothing_changes(
    tensors: dict[str, torch.Tensor], told: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    home = places(model)
    with pytest.raises(SettingError, match=told):
        Residency({"dit": model}, torch.device("cpu")).override("dit", tensors)
    assert places(model) == home


@pytest.mark.gpu
@needs_a_card
def test_weights_are_dropped_from_the_card_and_keep_their_home() -> None:
    one, two = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8).requires_grad_(False)
    two.register_buffer("positions", torch.arange(3))
    card = Residency({"one": one, "two": two}, torch.device("cuda"))
    card.all_fit = False
    home = places(one)
    with card.phase("one"):
        assert {device for device, _ in places(one)} == {"cuda"}
        assert {device for device, _ in places(two)} == {"cpu"}
        answer = one(torch.ones(1, 8, device="cuda")).cpu()
    with card.phase("two"):
        assert {device for device, _ in places(two)} == {"cuda"}
        assert places(one) == home
    torch.testing.assert_close(answer, one(torch.ones(1, 8)))


@pytest.mark.gpu
@needs_a_card
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_the_same_resident_and_by_turns(dtype: torch.dtype) -> None:
    from flux_engine import load_engine

    engine = load_engine("flux-shapes", torch_dtype=dtype, device="cuda", micro_batch=2)
    rows = [asked(f"row {i}", i, cfg_scale=2.0 if i % 2 else 1.0) for i in range(3)]
    resident = engine.generate(rows)
    engine.residency.all_fit = False
    by_turns = engine.generate(rows)
    for one, two in zip(resident, by_turns, strict=True):
        assert torch.equal(one.latents, two.latents)
        assert torch.equal(one.pixels, two.pixels)
