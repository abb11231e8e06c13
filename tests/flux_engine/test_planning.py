from dataclasses import replace

import pytest

from flux_engine import SettingError
from flux_engine.batching import Batching, Bucket, Worn
from flux_engine.planning import Planning
from flux_engine.sampling.tiling import Tiling
from flux_engine.vram.estimates import GIB
from flux_engine.vram.planner import stage_bytes
from tests.flux_engine.asking import asked
from tests.flux_engine.vram.published import card, flux_dev


def bucket(side: int = 1024, **other: object) -> Bucket:
    changed = {"height": side, "width": side, "t5_sequence_length": 512, **other}
    return Bucket.of(asked(num_inference_steps=28, **changed), 3.0)


def planning(gib: float, batching: Batching | None = None) -> Planning:
    weights, sizes = flux_dev()
    return Planning(
        batching or Batching(), cell=16, machine=card("H200", gib), weights=weights, sizes=sizes
    )


def test_without_a_card_batches_follow_a_rule_and_nothing_is_placed() -> None:
    plain = Planning(Batching(), cell=16)
    assert plain.micro_batch(bucket()) == 4
    assert plain.decode_batch(512, 512, None) == 4
    assert plain.together(bucket())
    assert plain.text_batch(512) == 8
    for stage in (plain.text(512), plain.denoise(bucket()), plain.decode(64, 64, None)):
        assert (dict(stage.resident), stage.slots) == ({}, 0)
    with pytest.raises(SettingError, match="no card"):
        plain.plan(bucket())


def test_what_is_kept_is_taken_and_the_stages_are_planned_for_it() -> None:
    asked_for: dict[str, int] = {}

    def keep(name: str, value: int) -> int:
        asked_for[name] = value
        return 2 if name.startswith("micro") else 3

    plans = planning(12)
    plans.keep = keep
    assert plans.micro_batch(bucket(cfg_scale=2.0)) == 2
    assert plans.decode_batch(512, 512, None) == 3
    assert plans.decode_batch(2048, 2048, Tiling(64, 32)) == 3
    assert plans.denoise(bucket()).working < planning(12).denoise(bucket()).working
    assert list(asked_for)[:3] == [
        "micro_batch 1024x1024 text 512 guided",
        "decode_batch 512x512",
        "decode_batch 2048x2048 tiles 64",
    ]


def test_a_batch_that_another_card_chose_and_this_one_cannot_hold_is_refused() -> None:
    plans = planning(4.5)
    plans.keep = lambda *_: 16
    with pytest.raises(SettingError, match="micro-batches of 16"):
        plans.micro_batch(bucket())


def test_a_batch_in_the_recipe_is_not_asked_for() -> None:
    plans = planning(12, Batching(micro=3, decode=2))
    plans.keep = lambda *_: 9
    assert plans.micro_batch(bucket()) == 3
    assert plans.decode_batch(1024, 1024, None) == 2


def test_tiles_make_a_large_picture_fit() -> None:
    plans = planning(8)
    with pytest.raises(SettingError, match="2048×2048"):
        plans.decode(2048, 2048, None)
    assert plans.decode(2048, 2048, Tiling(128, 64)).working < 4 * GIB
    assert not plans.together(bucket(2048))


RANK_64 = Worn(factors=660_000_000, gathered=64 * 21504)


def worn(outfits: int, **other: object) -> Bucket:
    return replace(bucket(**other), loras="beside abc", worn=replace(RANK_64, outfits=outfits))


def test_what_loras_take_is_planned_for() -> None:
    for gib in (8, 12, 24, 139):
        plans = planning(gib)
        bare, one = plans.denoise(bucket()), plans.denoise(worn(1))
        weights = plans.weights or {}
        assert stage_bytes(weights, one) <= gib * GIB
        size = plans.micro_batch(worn(1))
        if plans.micro_batch(bucket()) == size:
            more = 2 * (RANK_64.factors + size * 64 * 21504)
            assert one.working - bare.working == more


def test_a_micro_batch_has_no_more_outfits_than_there_is_room_for_and_keeps_its_shape() -> None:
    plans = planning(8)
    size = plans.micro_batch(worn(1))
    assert plans.outfits(worn(1)) == 1
    assert 1 < plans.outfits(worn(16)) < size == plans.micro_batch(worn(16))
    assert stage_bytes(plans.weights or {}, plans.denoise(worn(16))) <= 8 * GIB
    assert planning(139).outfits(worn(4)) == 4
    assert Planning(Batching(), cell=16).outfits(worn(5)) == 5


def test_a_bucket_that_loras_leave_no_room_for_is_refused_by_their_name() -> None:
    assert planning(3, Batching(text=1, micro=1)).denoise(bucket())
    with pytest.raises(
        SettingError, match=r"needs 2\.2 GiB to work in \(1\.2 GiB of them for LoRAs beside"
    ):
        planning(3, Batching(text=1, micro=1)).denoise(worn(1))


def test_rows_that_wear_loras_have_a_shape_of_their_own() -> None:
    names: list[str] = []
    plans = planning(12)
    plans.keep = lambda name, value: names.append(name) or value
    plans.micro_batch(worn(1))
    plans.micro_batch(worn(3))
    plans.micro_batch(bucket())
    assert names == ["micro_batch 1024x1024 text 512 beside abc", "micro_batch 1024x1024 text 512"]


def test_the_text_batch_is_chosen_once_for_an_output() -> None:
    plans = planning(139)
    assert plans.text_batch(512) == 8
    plans.keep = lambda name, value: 3 if (name, value) == ("text_batch 512 tokens", 8) else value
    assert plans.text_batch(512) == 3
    assert plans.text(512).working < planning(139).text(512).working
    assert planning(139, Batching(text=5)).text_batch(512) == 5


def test_where_memory_ran_out_fewer_weights_stay_and_nothing_else_changes() -> None:
    plans = planning(24)
    size, before = plans.micro_batch(bucket()), plans.denoise(bucket())
    kept = [before.resident["dit"]]
    while plans.shrink(bucket()):
        assert plans.micro_batch(bucket()) == size
        kept.append(plans.denoise(bucket()).resident["dit"])
    assert len(kept) > 2
    assert [len(some) for some in kept] == sorted(map(len, kept), reverse=True)
    assert len(kept[-1]) == 0
    limit = plans.limit(bucket())
    assert not plans.shrink(bucket())  # and stays as it was
    assert plans.limit(bucket()) == limit
    assert plans.denoise(bucket(512)) == planning(24).denoise(bucket(512))
    assert plans.text(512) == planning(24).text(512)
    assert plans.denoise(bucket()).resident["dit"] == kept[-1]
    assert not Planning(Batching(), cell=16).shrink(bucket())
