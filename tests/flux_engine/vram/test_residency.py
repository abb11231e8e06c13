import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flux_engine import FluxEngine, Generation, SettingError, load_engine
from flux_engine.vram.card import HostCard
from flux_engine.vram.planner import Stage
from flux_engine.vram.residency import Residency
from tests.flux_engine.adapters.wearing import file_of, use
from tests.flux_engine.asking import asked, picture
from tests.flux_engine.held import held
from tests.flux_engine.vram.streaming import (
    BLOCKS,
    TABLES,
    dit_inputs,
    late,
    rooms,
    run,
    small_dit,
    staged,
)

needs_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ALL = frozenset(BLOCKS + TABLES)


def places(model: nn.Module) -> set[tuple[str, int]]:
    return {(t.device.type, t.data_ptr()) for t in (*model.parameters(), *model.buffers())}


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def two(limit: float) -> tuple[Residency, HostCard]:
    """Two models, each one unit of 1024 bytes."""
    torch.manual_seed(0)
    models = {name: nn.Linear(16, 16, bias=False).requires_grad_(False) for name in ("one", "two")}
    card = HostCard()
    return Residency(models, card, limit=limit), card


def only(*names: str, working: int = 0) -> Stage:
    return Stage(resident={name: frozenset() for name in names}, working=working)


def test_without_a_card_nothing_moves() -> None:
    home = places(dit := small_dit())
    room = Residency({"dit": dit})
    with room.phase(staged(frozenset(), 0)), room.loop("dit", 3):
        assert places(dit) == home
    assert not room.streams("dit", "block")
    assert room.used == 0


def test_weights_come_once_and_stay_where_there_is_room() -> None:
    room, card = two(limit=2048)
    for names in (("one",), ("two",), ("one",), ("one", "two")):
        with room.phase(only(*names)):
            pass
    assert card.copied == 2048 == room.used


def test_who_is_not_needed_goes_where_there_is_no_room_and_nothing_is_copied_back() -> None:
    room, card = two(limit=2047)
    home = places(room.models["one"])
    for name in ("one", "two", "one"):
        with room.phase(only(name)):
            assert room.used == 1024
            assert places(room.models[name]) != home
    assert card.copied == 3 * 1024
    assert room.models["two"].weight.data_ptr() == room.stored("two", "weight").data_ptr()


def test_who_has_left_holds_nothing_and_is_not_asked_again() -> None:
    room, card = rooms(dit := small_dit())
    with room.phase(staged(frozenset(BLOCKS[:2]), 2)):
        run(dit, room)
    room.leave()
    before = card.copies
    assert same(run(dit), run(small_dit()))
    assert (card.copies, room.used) == (before, 0)
    other = Residency({"dit": dit}, HostCard(), images=room.images)
    with other.phase(staged(frozenset(), 2)):
        assert same(run(dit, other), run(small_dit()))


def test_room_to_work_in_counts() -> None:
    room, _ = two(limit=2048)
    with room.phase(only("one")):
        pass
    with room.phase(only("two", working=1)):
        assert room.used == 1024


def test_what_follows_comes_in_beside_as_far_as_there_is_room() -> None:
    room, card = two(limit=2048)
    with room.phase(only("one"), only("two")):
        assert room.used == 2048
    assert card.copies == 2
    with room.phase(only("two")):
        pass
    assert card.copies == 2
    room, _ = two(limit=2047)
    with room.phase(only("one"), only("two")):
        assert room.used == 1024


def test_a_stage_that_keeps_other_blocks_lets_the_rest_stream() -> None:
    room, card = rooms(dit := small_dit())
    expected = run(small_dit())
    for kept in (ALL, frozenset(BLOCKS[2:]), frozenset(BLOCKS[:4]), frozenset[str]()):
        with room.phase(staged(kept, 2)):
            assert same(run(dit, room), expected)
    assert not room.streams("vae", "block")
    assert room.streams("dit", "block")
    assert room.streams("dit", "table")
    sizes = room.sizes()["dit"]
    ring = 2 * max(n for _, n in sizes.values())
    assert room.used == ring + sizes["rest"][1]
    assert card.host_waits == 0


def test_a_model_can_be_called_without_telling_how_often() -> None:
    room, card = rooms(dit := small_dit())
    expected = run(small_dit(), steps=1)[1:]
    with room.phase(staged(frozenset(), 3)):
        for _ in range(3):
            table = run(small_dit())[0]
            room.ring.finish()  # type: ignore[union-attr]
            draw = torch.Generator().manual_seed(1)
            x, text = (torch.randn(2, *s, generator=draw) for s in ((12, 16), (5, 24)))
            torch.randn(2, 16, generator=draw)
            rotation = dit.rotation(torch.randint(0, 4, (17, 3), generator=draw))
            with torch.inference_mode():
                assert same([dit(x, text, table, rotation)], expected)
    assert card.copies == 1 + 3 * len(BLOCKS)


def test_after_a_loop_the_model_sees_its_stored_weights() -> None:
    room, _ = rooms(dit := small_dit())
    with room.phase(staged(frozenset(), 2)):
        run(dit, room)
    for key, parameter in dit.named_parameters():
        if "blocks" in key:
            assert parameter.data_ptr() == room.stored("dit", key).data_ptr()


def test_a_loop_that_breaks_off_harms_no_later_one() -> None:
    room, _ = rooms(dit := small_dit())
    expected = run(small_dit())

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room on the card")

    for at in range(3):
        with room.phase(staged(frozenset(BLOCKS[:1]), 2)):
            hook = dit.single_blocks[at].register_forward_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                run(dit, room)
            hook.remove()
            assert same(run(dit, room), expected)


@pytest.mark.parametrize("kept", [frozenset(), frozenset(BLOCKS[::2]), ALL, None], ids=str)
def test_overridden_weights_are_in_force_everywhere_and_come_back_bit_for_bit(
    kept: frozenset[str] | None,
) -> None:
    plain, changed = small_dit(), small_dit()
    torch.manual_seed(9)
    others = {
        key: torch.randn_like(plain.get_parameter(key))
        for key in (
            "double_blocks.1.img_attn.qkv.weight", "single_blocks.0.linear2.weight",
            "single_blocks.0.modulation.lin.weight", "img_in.weight",
        )
    }  # fmt: skip
    for key, tensor in others.items():
        changed.get_parameter(key).data = tensor
    dit = small_dit()
    room = Residency({"dit": dit}) if kept is None else rooms(dit)[0]
    stage = staged(kept or frozenset(), 2)
    with room.phase(stage):
        assert same(run(dit, room), run(plain))
        for key, tensor in others.items():  # one by one: they add up
            room.override("dit", {key: tensor})
        assert same(run(dit, room), run(changed))
    with room.phase(stage):
        assert same(run(dit, room), run(changed))
        assert torch.equal(room.stored("dit", "img_in.weight"), plain.img_in.weight)
        room.restore("dit")
        assert same(run(dit, room), run(plain))
    assert all(torch.equal(room.stored("dit", k), p) for k, p in plain.named_parameters())


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"wait": torch.zeros(16, 16)}, r"one has no such weights: wait$"),
        ({"weight": torch.zeros(16, 5)}, r"weight \(\[16, 5\] float32 for \[16, 16\] float32\)"),
        ({"weight": torch.zeros(16, 16).half()}, r"\[16, 16\] float16 for \[16, 16\] float32"),
    ],
)
@pytest.mark.parametrize("with_a_card", [True, False])
def test_overrides_that_do_not_fit_are_named_and_nothing_changes(
    tensors: dict[str, Tensor], told: str, with_a_card: bool
) -> None:
    room, _ = two(limit=2048)
    if not with_a_card:
        room = Residency(room.models)
    home = places(room.models["one"])
    with pytest.raises(SettingError, match=told):
        room.override("one", tensors)
    assert places(room.models["one"]) == home


def new_engine() -> FluxEngine:
    return load_engine(
        device="cpu", torch_dtype=torch.float32, text_batch=2, micro_batch=2, decode_batch=2
    )


ROWS = [
    *(asked(f"row {i}", i, cfg_scale=2.0 if i % 2 else 1.0) for i in range(5)),
    asked("row 0", 7, height=80),
    asked("row 1", 8, input_image=picture(0), denoising_strength=0.5),
]


@pytest.fixture(scope="module")
def resident() -> list[Generation]:
    return new_engine().generate(ROWS)


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_the_engines_pictures_are_the_same_however_its_weights_are_held(
    seed: int | None, resident: list[Generation]
) -> None:
    engine = new_engine()
    card = held(engine, seed=seed)
    made = engine.generate(ROWS)
    assert engine.text.encoded == 6  # five prompts and the empty negative one
    for one, other in zip(made, resident, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.pixels, other.pixels)
    assert card.host_waits == 0
    if seed is None:
        everything = sum(
            n for units in engine.residency.sizes().values() for _, n in units.values()
        )
        assert card.copied == everything == engine.residency.used
        engine.generate(ROWS)
        assert card.copied == everything


def passing(engine: FluxEngine) -> HostCard:
    """Held so that no block of the transformer stays."""
    card = held(engine)
    stage = Stage(resident={"dit": frozenset(), "vae": frozenset()}, slots=2)
    engine.planning.denoise = lambda _: stage  # type: ignore[method-assign]
    return card


def test_one_pass_of_the_tables_makers_serves_a_bucket_of_micro_batches() -> None:
    card = passing(engine := new_engine())
    card.log = []
    engine.generate(ROWS[:5:2] * 3)  # nine rows of one kind: five micro-batches
    copied = [name for what, name in card.log if what == "copy"]
    sizes = engine.residency.sizes()["dit"]
    tables = [f"dit.{name}" for name, (kind, _) in sizes.items() if kind == "table"]
    blocks = [f"dit.{name}" for name, (kind, _) in sizes.items() if kind == "block"]
    assert [copied.count(name) for name in tables] == [1] * len(tables)
    assert [copied.count(name) for name in blocks] == [5 * 2] * len(blocks)  # of two steps each


def test_memory_that_runs_out_in_mid_stream_halves_the_micro_batch_and_changes_no_bit() -> None:
    smaller = new_engine().generate(ROWS)  # in twos
    engine = load_engine(
        device="cpu", torch_dtype=torch.float32, text_batch=2, micro_batch=4, decode_batch=2
    )
    passing(engine)

    def full(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = 4 if len(inputs[0]) == 2 else 2 * len(inputs[0])
        if rows > 8:
            raise torch.OutOfMemoryError("no room on the card")

    engine.dit.single_blocks[2].register_forward_pre_hook(full)
    made = engine.generate(ROWS[:5])
    plain = [one for i, one in enumerate(made) if i % 2 == 0]
    guided = [one for i, one in enumerate(made) if i % 2]
    assert {one.micro_batch for one in plain} == {4}
    assert {one.micro_batch for one in guided} == {2}
    for one, other in zip(guided, (smaller[1], smaller[3]), strict=True):
        assert torch.equal(one.latents, other.latents)


@pytest.mark.gpu
@needs_a_card
@pytest.mark.parametrize("kept", [0, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_card_streamed_is_resident_bit_for_bit(dtype: torch.dtype, kept: int) -> None:
    engine = load_engine(torch_dtype=dtype, device="cuda", micro_batch=2)
    expected = engine.generate(ROWS)
    engine = load_engine(torch_dtype=dtype, device="cuda", micro_batch=2)
    names = sorted(engine.residency.sizes()["dit"])
    stage = Stage(resident={"dit": frozenset(names[:kept]), "vae": frozenset()}, slots=2)
    engine.planning.denoise = lambda _: stage  # type: ignore[method-assign]
    for one, other in zip(engine.generate(ROWS), expected, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.pixels, other.pixels)


@pytest.mark.gpu
@needs_a_card
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # is a prototype, torch says
@pytest.mark.parametrize("worn", [False, True], ids=["bare", "LoRAs beside"])
def test_on_a_card_the_loop_asks_for_no_memory_and_waits_for_nobody(
    worn: bool, tmp_path: Path
) -> None:
    """In the second of three micro-batches neither: its table waits on the host."""
    engine = load_engine(torch_dtype=torch.bfloat16, device="cuda", micro_batch=2)
    stage = Stage(resident={"dit": frozenset(), "vae": frozenset()}, slots=2)
    engine.planning.denoise = lambda _: stage  # type: ignore[method-assign]
    loras = (use(file_of(tmp_path, engine)),) if worn else ()
    allocations: list[list[int]] = []

    def steps(numbers: Iterable[int]) -> Iterator[int]:
        allocations.append([])
        for n in numbers:
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield n
            finally:
                torch.cuda.set_sync_debug_mode("default")
            allocations[-1].append(torch.cuda.memory_stats()["num_device_alloc"])

    engine.generate([asked(f"row {i}", i, num_inference_steps=6, loras=loras) for i in range(6)],
                    steps)  # fmt: skip
    assert [len(of_one) for of_one in allocations] == [6, 6, 6]
    assert [len(set(of_one[1:])) for of_one in allocations] == [1, 1, 1]


@pytest.mark.parametrize("seed", range(6))
def test_two_transformers_pass_through_one_ring_step_by_step(seed: int) -> None:
    draw = random.Random(seed)
    nets = {"trunk": small_dit(), "dit": small_dit()}
    inputs = dit_inputs(nets["dit"])

    def steps(room: Residency) -> list[Tensor]:
        out = []
        with torch.inference_mode(), room.loop(("trunk", "dit"), 3):
            x, *rest = inputs
            for _ in range(3):
                x = x + nets["trunk"](x, *rest)
                x = nets["dit"](x, *rest)
                out.append(x.clone())
        return out

    expected = steps(Residency(nets))
    card = HostCard(late(seed))
    room = Residency(nets, card)
    stay = {name: frozenset(draw.sample(BLOCKS, draw.randrange(len(BLOCKS)))) for name in nets}
    with room.phase(staged(stay, draw.randrange(1, 4))):
        before = card.copies
        made = steps(room)
    assert all(map(torch.equal, made, expected))
    assert card.copies - before == 3 * sum(len(BLOCKS) - len(names) for names in stay.values())
    assert card.host_waits == 0


@pytest.mark.parametrize("room", [True, False])
def test_the_autoencoder_is_on_its_way_while_the_transformer_works(
    room: bool, resident: list[Generation]
) -> None:
    card = held(engine := new_engine())
    stage = Stage(resident={"dit": frozenset()}, slots=2)
    engine.planning.denoise = lambda _: stage  # type: ignore[method-assign]
    engine.planning.together = lambda _: False  # type: ignore[method-assign]
    if not room:
        engine.residency.limit = 0
    card.log = []
    made = engine.generate(ROWS[:3:2])
    for one, other in zip(made, resident[:3:2], strict=True):
        assert torch.equal(one.pixels, other.pixels)
    copied = [name for what, name in card.log if what == "copy"]
    last = max(n for n, name in enumerate(copied) if name.startswith("dit."))
    assert (copied.index("vae.rest") < last) is room
    assert copied.count("vae.rest") == 1
