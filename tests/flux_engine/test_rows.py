from dataclasses import replace
from types import SimpleNamespace

import torch

from flux_engine.adapters.lora import BARE
from flux_engine.batching import Bucket, Worn
from flux_engine.encode import Text
from flux_engine.rows import Coded, Denoised, Prepared, by_picture, prompts_of, stacked
from flux_engine.sampling.tiling import Tiling
from tests.flux_engine.asking import asked


def test_a_guided_row_has_two_texts() -> None:
    assert prompts_of(asked("owl")) == (("owl", 20),)
    guided = asked("owl", negative_prompt="bad", cfg_scale=2.0)
    assert prompts_of(guided) == (("owl", 20), ("bad", 20))
    texts = {
        (name, 20): Text(torch.full((1, 1), n), torch.zeros(1), 0)
        for n, name in enumerate(("owl", "bad"))
    }
    rows = Prepared({0: guided}, {0: BARE}, {"": texts}, {})
    assert [int(text.states_TW) for text in rows.texts_of(0)] == [0, 1]


def test_rows_share_the_autoencoder_by_size_and_tiles() -> None:
    requests = {0: asked(), 1: asked(height=80), 2: asked(), 3: asked(tiled=True, tile_size=64)}
    assert by_picture([0, 1, 2, 3], requests) == {
        (64, 64, None): [0, 2],
        (80, 64, None): [1],
        (64, 64, Tiling(64, 64)): [3],
    }


def test_latents_of_a_micro_batch_are_stacked() -> None:
    made = [Denoised(torch.full((2,), float(n)), 2) for n in range(2)]
    assert stacked(made).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_micro_batches_have_so_many_outfits_where_these_stand_beside_the_weights() -> None:
    outfits = {i: SimpleNamespace(key="ab"[i // 2]) for i in range(4)}
    rows = Prepared(dict.fromkeys(range(4), asked()), outfits, {}, {})  # type: ignore[arg-type]
    plain = Bucket.of(asked(), 1.0)
    worn = replace(plain, worn=Worn(factors=1, outfits=2))
    assert list(rows.micro_batches(plain, [0, 1, 2, 3], 4, 1)) == [([0, 1, 2, 3], [0, 1, 2, 3])]
    assert list(rows.micro_batches(worn, [0, 1, 2], 4, 1)) == [
        ([0, 1], [0, 1, 1, 1]),
        ([2], [2, 2, 2, 2]),
    ]


def test_a_row_tells_in_which_stages_memory_was_short() -> None:
    texts = {("owl", 20): Text(torch.zeros(1, 1), torch.zeros(1), 0, halved=4)}
    rows = Prepared({0: asked("owl")}, {0: BARE}, {"": texts}, {0: Coded(torch.zeros(1), 2)})
    assert rows.halved(0, Coded(torch.zeros(1), 1)) == "text 4, encode 2, decode 1"
    assert rows.halved(0, None) == "text 4, encode 2"
