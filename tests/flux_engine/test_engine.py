import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flux_engine import FluxEngine, Generation, NumbersBroke, RequestError, load_engine, planning
from flux_engine.adapters.lora import BARE
from flux_engine.encode import PictureCoder
from flux_engine.request import Outcome, Watch
from flux_engine.sampling.schedule import flux_shift
from flux_engine.vram.estimates import RESERVE
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import asked, picture
from tests.flux_engine.crowded import Watched
from tests.flux_engine.held import ROOMY, held

BROKEN = asked("broken", embedded_guidance=1e36)  # a thousand times that is infinite


@pytest.fixture
def engine(shapes_engine: ShapesEngine) -> FluxEngine:
    return shapes_engine()


def same(one: Outcome, other: Outcome) -> bool:
    assert isinstance(one, Generation)
    assert isinstance(other, Generation)
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.latents, other.latents)


def test_requests_become_pictures_in_their_order(engine: FluxEngine) -> None:
    rows = [asked(seed=1), asked(seed=2, height=80), asked(seed=3), asked(seed=4, cfg_scale=2.0)]
    made = engine.generate(rows)
    assert [tuple(one.pixels.shape) for one in made] == [(3, row.height, row.width) for row in rows]
    assert all(same(one, engine.generate([row])[0]) for one, row in zip(made, rows, strict=True))


def test_a_picture_comes_with_what_it_was_made_with(engine: FluxEngine) -> None:
    (made,) = engine.generate([asked("red " * 40)])
    assert (made.pixels.shape, made.pixels.dtype) == ((3, 64, 64), torch.float32)
    assert (made.latents.shape, made.latents.dtype) == ((16, 8, 8), torch.float32)
    assert made.pixels.device.type == made.latents.device.type == "cpu"
    assert made.sigma_shift == flux_shift(16)
    assert made.micro_batch == 2
    assert made.tokens_dropped > 0
    for asked_for in ({"sigma_shift": 1.5}, {"schedule": "diffsynth"}):
        (made,) = engine.generate([asked(**asked_for)])
        assert made.sigma_shift == asked_for.get("sigma_shift", 3.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "two green squares"},
        {"seed": 1},
        {"embedded_guidance": 1.0},
        {"cfg_scale": 2.0},
        {"sigma_shift": 1.5},
        {"schedule": "diffsynth"},
        {"num_inference_steps": 3},
        {"t5_sequence_length": 24},
        {"input_image": picture(0), "denoising_strength": 0.5},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_value_counts(engine: FluxEngine, changed: dict[str, Any]) -> None:
    one, other = engine.generate([asked(), asked(**changed)])
    assert not torch.equal(one.latents, other.latents)


@pytest.mark.parametrize(
    "changed", [{"negative_prompt": "grey"}, {"denoising_strength": 0.5}, {"tile_size": 6}]
)
def test_values_without_their_companion_do_not_count(
    engine: FluxEngine, changed: dict[str, Any]
) -> None:
    assert same(*engine.generate([asked(), asked(**changed)]))


def test_a_picture_at_full_strength_leaves_only_noise(engine: FluxEngine) -> None:
    assert same(*engine.generate([asked(), asked(input_image=picture(0))]))


def test_little_strength_stays_near_the_picture(engine: FluxEngine) -> None:
    near, far = engine.generate(
        [asked(input_image=picture(0), denoising_strength=s, num_inference_steps=10)
         for s in (0.1, 0.9)]
    )  # fmt: skip
    (clean,) = engine.pictures.encode([picture(0)], 1, None)
    assert (near.latents - clean).norm() < (far.latents - clean).norm()


def test_the_table_is_made_once_for_all_steps_of_a_micro_batch(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(engine.dit)
    monkeypatch.setattr(engine, "dit", watched)
    engine.generate([asked(seed=i, num_inference_steps=4) for i in range(5)])
    assert watched.tables == 3
    assert watched.batches == [2] * 3 * 4
    engine.generate([asked(seed=i, cfg_scale=2.0) for i in range(2)])
    assert watched.tables == 4
    assert watched.batches[12:] == [4, 4]  # both sides together


def test_prompts_are_encoded_once_for_all_rows(engine: FluxEngine) -> None:
    before = engine.text.encoded
    rows = [asked("seen for the first time", seed=i, cfg_scale=2.0) for i in range(3)]
    engine.generate([*rows, asked("seen for the first time")])
    engine.generate(rows)
    assert engine.text.encoded - before in (1, 2)  # with the empty negative prompt, if it is new


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"height": 72}, "height 72 and width 64 must be multiples of 16"),
        ({"width": 0}, "height 64 and width 0 must"),
        ({"height": -16}, "height -16 and"),
        ({"denoising_strength": 1.5}, "denoising_strength is 1.5; allowed are 0"),
        ({"denoising_strength": 0.0}, "denoising_strength is 0.0; allowed are 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; allowed are 1"),
        ({"input_image": torch.zeros(3, 64, 80)}, r"input_image is \(3, 64, 80\) .* \(3, 64, 64\)"),
        ({"input_image": torch.zeros(1, 64, 64)}, r"input_image is \(1, 64, 64\)"),
        ({"input_image": torch.zeros(3, 64, 64, dtype=torch.uint8)}, "input_image is of torch.ui"),
        ({"rand_device": "tpu"}, "rand_device is 'tpu'; allowed here: cpu"),
    ],
)
def test_what_cannot_be_made_is_told_with_what_is_allowed(
    engine: FluxEngine, changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        engine.check(asked(**changed))


def test_a_bad_row_is_an_answer_and_the_others_are_made(engine: FluxEngine) -> None:
    rows = [asked(seed=1), asked(height=72), asked(seed=2), asked(denoising_strength=2.0)]
    outcomes = dict(engine.each(rows))
    assert sorted(outcomes) == [0, 1, 2, 3]
    assert {i for i, one in outcomes.items() if isinstance(one, RequestError)} == {1, 3}
    good = engine.generate([rows[0], rows[2]])
    assert same(outcomes[0], good[0])
    assert same(outcomes[2], good[1])


def test_only_bad_rows_and_no_rows_at_all_are_no_work(engine: FluxEngine) -> None:
    before = engine.text.encoded
    assert [i for i, _ in engine.each([asked("never", height=72)])] == [0]
    assert list(engine.each([])) == []
    assert engine.generate([]) == []
    assert engine.text.encoded == before


def test_generate_refuses_before_it_makes_anything(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(engine.dit)
    monkeypatch.setattr(engine, "dit", watched)
    with pytest.raises(RequestError, match="height 72"):
        engine.generate([asked(), asked(height=72)])
    assert watched.batches == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_whose_numbers_break_leaves_its_neighbours_bits(
    shapes_engine: ShapesEngine, dtype: torch.dtype
) -> None:
    engine = shapes_engine(torch_dtype=dtype, micro_batch=3)
    whole = engine.generate([asked(seed=1), asked("sound"), asked(seed=2)])
    outcomes = dict(engine.each([asked(seed=1), BROKEN, asked(seed=2)]))
    assert isinstance(outcomes[1], NumbersBroke)
    assert "latents" in str(outcomes[1])
    assert same(outcomes[0], whole[0])
    assert same(outcomes[2], whole[2])
    with pytest.raises(NumbersBroke):
        engine.generate([BROKEN])


def test_a_picture_of_nans_breaks_its_own_row_only(engine: FluxEngine) -> None:
    start: dict[str, Any] = {"denoising_strength": 0.5}
    rows = [asked(seed=i, input_image=picture(i), **start) for i in range(2)]
    nan = asked(input_image=torch.full((3, 64, 64), float("nan")), **start)
    outcomes = dict(engine.each([rows[0], nan, rows[1]]))
    assert isinstance(outcomes[1], NumbersBroke)
    made = engine.generate(rows)
    assert same(outcomes[0], made[0])
    assert same(outcomes[2], made[1])


def test_pixels_that_break_are_their_rows_fault(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blind(PictureCoder):
        def decode(self, *arguments: Any) -> list[Tensor]:
            first, *others = super().decode(*arguments)
            return [first * float("inf"), *others]

    whole = engine.generate([asked(seed=1), asked(seed=2)])
    monkeypatch.setattr(engine.darkroom, "coder", Blind(engine.vae, engine.device, engine.dtype))
    outcomes = dict(engine.each([asked(seed=1), asked(seed=2)]))
    assert isinstance(outcomes[0], NumbersBroke)
    assert same(outcomes[1], whole[1])


def test_for_lack_of_memory_the_micro_batch_is_halved_and_recorded(
    shapes_engine: ShapesEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = shapes_engine(micro_batch=8)
    rows = [asked(seed=i) for i in range(5)]
    expected = shapes_engine(micro_batch=2).generate(rows)
    watched = Watched(engine.dit, room=3)
    monkeypatch.setattr(engine, "dit", watched)
    with caplog.at_level(logging.WARNING):
        made = engine.generate(rows)
    assert [one.micro_batch for one in made] == [2] * 5
    assert all(same(one, other) for one, other in zip(made, expected, strict=True))
    assert [vars(record)["micro_batch"] for record in caplog.records] == [4, 2]
    assert set(watched.batches) == {2}


def test_what_was_made_before_memory_ran_out_keeps_its_micro_batch(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(engine.dit)
    monkeypatch.setattr(engine, "dit", watched)

    def fill(steps: Iterable[int]) -> Iterator[int]:
        yield from steps
        watched.room = 1

    made = engine.generate([asked(seed=i) for i in range(4)], fill)
    assert [one.micro_batch for one in made] == [2, 2, 1, 1]


def test_one_row_that_does_not_fit_raises(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "dit", Watched(engine.dit, room=0))
    with pytest.raises(torch.OutOfMemoryError, match="no room on the card"):
        engine.generate([asked()])


def test_no_call_changes_the_next(engine: FluxEngine) -> None:
    torch.manual_seed(0)
    first = engine.generate([asked()])[0]
    torch.manual_seed(1)
    dict(engine.each([BROKEN, asked(height=80), asked(cfg_scale=2.0)]))
    assert same(engine.generate([asked()])[0], first)


class Leaves(Watch):
    """Writes down what it is told, and leaves before the micro-batch of a given number."""

    def __init__(self, before: int) -> None:
        self.before, self.asked = before, 0
        self.told: list[tuple[str, list[int]]] = []

    def at(self, stage: str, rows: Sequence[int]) -> None:
        self.told.append((stage, list(rows)))

    def leaving(self) -> bool:
        self.asked += 1
        return self.asked > self.before


def test_pictures_leave_as_soon_as_a_batch_of_them_is_denoised(engine: FluxEngine) -> None:
    watch = Leaves(99)
    rows = [asked(f"row {i}", i) for i in range(5)]
    order = [i for i, _ in engine.each(rows, watch=watch)]
    assert order == [0, 1, 2, 3, 4]
    assert watch.told == [
        ("text", [0, 1, 2, 3, 4]),
        ("denoise", [0, 1]),
        ("decode", [0, 1]),
        ("denoise", [2, 3]),
        ("decode", [2, 3]),
        ("denoise", [4]),
        ("decode", [4]),
    ]


def test_whoever_leaves_between_micro_batches_has_what_was_begun(engine: FluxEngine) -> None:
    rows = [asked(f"row {i}", i) for i in range(5)]
    whole = engine.generate(rows)
    made = dict(engine.each(rows, watch=Leaves(1)))
    assert sorted(made) == [0, 1]
    for i, outcome in made.items():
        assert isinstance(outcome, Generation)
        assert torch.equal(outcome.pixels, whole[i].pixels)


def test_a_row_that_the_card_has_no_memory_for_is_an_answer_with_the_numbers() -> None:
    engine = load_engine(device="cpu", torch_dtype=torch.float32)
    held(engine, machine=replace(ROOMY, memory=RESERVE + 2**28))
    outcomes = dict(engine.each([asked(seed=1), asked(height=2048, width=2048), asked(seed=2)]))
    assert isinstance(outcomes[1], RequestError)
    assert "2048×2048" in str(outcomes[1])
    assert "GiB may be used on a toy card" in str(outcomes[1])
    assert isinstance(outcomes[0], Generation)
    assert isinstance(outcomes[2], Generation)
    tiled = asked(height=256, width=256, tiled=True, tile_size=16, tile_stride=8)
    assert isinstance(engine.generate([tiled])[0], Generation)


def test_pictures_are_encoded_by_size_and_come_with_their_moments(engine: FluxEngine) -> None:
    pictures = [picture(1), picture(2, 80), picture(3), picture(4)]

    def values(some: list[Tensor], *, moments: bool = False) -> dict[int, Tensor]:
        return {i: made.values for i, made in engine.encode(some, moments=moments)}

    means, moments = values(pictures), values(pictures, moments=True)
    assert [tuple(means[i].shape) for i in range(4)] == [
        (16, 8, 8),
        (16, 10, 8),
        (16, 8, 8),
        (16, 8, 8),
    ]
    for i, mean in means.items():
        torch.testing.assert_close(moments[i][:16], mean)
        assert torch.equal(values([pictures[i]])[0], mean)
    raw = engine.vae.moments(pictures[0][None])[1][0]
    spread = (0.5 * moments[0][16:]).exp()
    torch.testing.assert_close(spread, (0.5 * raw).exp() * 0.3611)


def test_for_lack_of_memory_for_one_row_fewer_weights_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"text_batch": 1, "micro_batch": 1, "decode_batch": 1}
    engine = load_engine(device="cpu", torch_dtype=torch.float32, **small)  # type: ignore[arg-type]
    rows = [asked(seed=i) for i in range(3)]
    expected = engine.generate(rows)
    held(engine)
    (bucket,) = engine.buckets({0: rows[0]}, {0: BARE})
    enough = max(engine.planning.plan(bucket).bytes.values())
    held(engine, machine=replace(ROOMY, memory=enough))
    monkeypatch.setattr(planning, "LESS", (0.97,))  # most of it is no weights here

    def full(*_: object) -> None:
        if not engine.residency.streams("dit", "block"):
            raise torch.OutOfMemoryError("no room on the card")

    engine.dit.single_blocks[0].register_forward_pre_hook(full)
    made = engine.generate(rows)
    assert all(same(one, other) for one, other in zip(made, expected, strict=True))
    assert "fewer weights stay on the card" in caplog.text
    assert engine.residency.streams("dit", "block")
