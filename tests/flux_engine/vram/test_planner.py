from dataclasses import replace

import pytest

from flux_engine.errors import SettingError
from flux_engine.vram.estimates import GIB, Sizes, Weights, Work
from flux_engine.vram.planner import Plan, Stage, decode_stage, plan, stage_bytes, text_stage
from tests.flux_engine.vram.published import card, flux_dev, square


def planned(name: str, gib: float | None, work: Work, **asked: int) -> Plan:
    weights, sizes = flux_dev()
    return plan(card(name, gib), weights, work, sizes, text_batch=8, least=4, **asked)


@pytest.mark.parametrize("gib", [6, 8, 12, 24, 139])
def test_no_stage_is_larger_than_the_limit(gib: float) -> None:
    weights, _ = flux_dev()
    made = planned("H200", gib, square(1024))
    assert made.decode is not None
    for name, stage in (("text", made.text), ("denoise", made.denoise), ("decode", made.decode)):
        assert made.bytes[name] == stage_bytes(weights, stage) <= gib * GIB


def test_a_large_card_holds_everything_and_a_24_gb_card_all_but_the_tables_makers() -> None:
    large, small = planned("H200", None, square(1024)), planned("RTX 4090", 23, square(1024))
    assert large.together
    assert len(large.denoise.resident["dit"]) == 115
    assert large.denoise.slots == 0
    assert small.copied == 0
    assert len(small.denoise.resident["dit"]) == 57
    assert small.denoise.slots == 2  # for the table
    assert large.limits == small.limits == "computing"


def test_an_h200_with_six_gb_is_as_fast_as_one_with_all_its_memory() -> None:
    tight, roomy = planned("H200", 5.6, square(1024)), planned("H200", None, square(1024))
    assert tight.copied > 14e9
    assert roomy.seconds / tight.seconds > 0.97


def test_a_micro_batch_that_is_given_is_taken() -> None:
    for size in (1, 3, 8):
        made = planned("H200", 12, square(1024), micro_batch=size, decode_batch=2)
        assert (made.micro_batch, made.decode_batch) == (size, 2)
    starved = planned("H200", 6, square(1024), micro_batch=1)
    assert starved.limits.startswith("the link to the card (")


def test_where_memory_is_short_the_micro_batch_is_smaller_than_what_fills_the_card() -> None:
    weights, sizes = flux_dev()
    made = plan(card("H200", 6), weights, square(1024), sizes, text_batch=8, least=16)
    assert made.micro_batch == 8


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        SettingError,
        match=r"1024×1024 in micro-batches of 8 needs 4\.\d GiB .*"
        r"two slots of 0\.42 GiB.*: together 5\.\d GiB; 5\.0 GiB may be used on H200",
    ):
        planned("H200", 5.0, square(1024), micro_batch=8)
    weights, sizes = flux_dev()
    with pytest.raises(
        SettingError,
        match=r"encoding 8 prompts of 512 tokens needs .* 2\.0 GiB may"
        r" be used on H200; a smaller engine\.text_batch",
    ):
        text_stage(card("H200", 2), weights, sizes, 512, 8)
    with pytest.raises(SettingError, match=r"1 of 2048×2048 pixels .* sampling\.tiled takes tiles"):
        decode_stage(card("H200", 8), weights, square(2048), sizes, None)


def test_a_picture_too_large_to_be_decoded_whole_is_planned_for_tiles() -> None:
    made = planned("H200", 8, square(2048))
    assert made.decode is None
    assert not made.together
    assert any("decode only in tiles" in line for line in made.lines())


def test_t5_stays_as_far_as_there_is_room() -> None:
    weights, sizes = flux_dev()
    whole, _ = text_stage(card("H200", 24), weights, sizes, 512, 8)
    part, _ = text_stage(card("H200", 8), weights, sizes, 512, 8)
    assert (len(whole.resident["t5"]), whole.slots) == (24, 0)
    assert 0 < len(part.resident["t5"]) < 24
    assert part.slots == 2
    assert len(part.resident["clip"]) == 12


def test_pictures_are_decoded_as_many_at_once_as_make_a_megapixel_and_fit() -> None:
    weights, sizes = flux_dev()
    assert decode_stage(card(), weights, square(512), sizes, None)[1] == 4
    assert decode_stage(card("H200", 2.0), weights, square(512), sizes, None)[1] < 4


def test_the_plan_is_told_in_words() -> None:
    made = planned("H200", 8, square(1024, sides=2))
    text = "\n".join(made.lines())
    for told in (
        "1024×1024, 28 steps, 512 tokens, both sides of cfg on H200, 8.0 GiB",
        "GiB on the card: text",
        "GB copied a step",
        "micro-batch",
        "s a picture",
    ):
        assert told in text
    assert Stage(resident={"dit": frozenset(), "vae": frozenset()}).models == ("dit", "vae")


def test_more_prompts_are_encoded_at_once_where_t5_passes_through_and_fewer_where_it_is_tight() -> (
    None
):
    weights, sizes = flux_dev()

    def chosen(gib: float, *, passing: bool = False) -> int:
        stage, batch = text_stage(card("H200", gib), weights, sizes, 512, None, passing=passing)
        assert stage_bytes(weights, stage) <= gib * GIB
        return batch

    assert chosen(139) == 8
    assert chosen(139, passing=True) == 32
    assert chosen(8) > 8
    assert chosen(2.5) < 8
    assert planned("H200", 139, square(1024)).text_batch == 8
    with pytest.raises(SettingError, match=r"encoding 1 prompts of 512 .* used on H200$"):
        text_stage(card("H200", 1.5), weights, sizes, 512, None)


def with_trunk() -> tuple[Weights, Sizes, Work]:
    """A second transformer of six blocks, called before the first at each step."""
    weights, sizes = flux_dev()
    few = {f"{stack}_blocks.{i}" for stack in ("double", "single") for i in range(3)}
    units = weights["dit"].items()
    trunk = {
        name: told
        for name, told in units
        if told[0] == "rest" or name.removesuffix(".table") in few
    }
    work = replace(square(1024), hoisted=("trunk", "dit"))
    return {**weights, "trunk": trunk}, sizes, work


@pytest.mark.parametrize("gib", [5.6, 8, 12, 24, 139])
def test_two_hoisted_models_share_the_card_and_the_ring(gib: float) -> None:
    weights, sizes, work = with_trunk()
    made = plan(card("H200", gib), weights, work, sizes, least=4)
    one = plan(card("H200", gib), weights, square(1024), sizes, least=4)
    assert set(made.denoise.models) >= {"trunk", "dit"}
    assert made.bytes["denoise"] == stage_bytes(weights, made.denoise) <= gib * GIB
    gone = [
        nbytes
        for model in work.hoisted
        for name, (kind, nbytes) in weights[model].items()
        if kind == "block" and name not in made.denoise.resident[model]
    ]
    assert made.copied == sum(gone) >= one.copied
    assert made.step_seconds / made.micro_batch > one.step_seconds / one.micro_batch


def test_one_of_two_hoisted_models_may_be_passing_and_both_are_counted_in_a_refusal() -> None:
    weights, sizes, work = with_trunk()
    made = plan(card("H200", 139), weights, work, sizes, passing=frozenset({"trunk"}))
    assert not made.denoise.resident["trunk"]
    assert len([n for n in made.denoise.resident["dit"] if not n.endswith(".table")]) == 57
    rest = weights["dit"]["rest"][1]
    least = plan(card("H200", 5), weights, square(1024), sizes, text_batch=1, micro_batch=4)
    smallest = least.denoise.working + 2 * max(n for k, n in weights["dit"].values() if k != "rest")
    room = card("H200", (smallest + 1.5 * rest) / GIB)
    assert plan(room, weights, square(1024), sizes, text_batch=1, micro_batch=4)
    with pytest.raises(SettingError, match="micro-batches of 4 needs"):
        plan(room, weights, work, sizes, text_batch=1, micro_batch=4)
