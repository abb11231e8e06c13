from typing import Any

import pytest
import torch
from torch import Tensor

from flux_engine import encode as encode_module
from flux_engine.encode import PictureCoder, Text, TextEncoder, layout_for
from flux_engine.sampling.tiling import Tiling
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import noise, picture


def encoder(shapes_engine: ShapesEngine, batch: int = 2, **options: int) -> TextEncoder:
    """One that has encoded nothing yet."""
    return TextEncoder(shapes_engine().text.models, torch.device("cpu"), lambda _: batch, **options)


def same(one: Text, other: Text) -> bool:
    return torch.equal(one.states_TW, other.states_TW) and torch.equal(one.pooled_P, other.pooled_P)


def test_each_distinct_text_is_encoded_once(shapes_engine: ShapesEngine) -> None:
    encode = encoder(shapes_engine)
    texts = encode([("owl", 20), ("fox", 20), ("owl", 20), ("owl", 24)])
    assert encode.encoded == 3  # an owl of another length is another text
    assert {key: tuple(text.states_TW.shape) for key, text in texts.items()} == {
        ("owl", 20): (20, 64),
        ("fox", 20): (20, 64),
        ("owl", 24): (24, 64),
    }
    encode([("fox", 20), ("hen", 20)])
    assert encode.encoded == 4


def test_a_texts_bits_do_not_depend_on_its_neighbours(shapes_engine: ShapesEngine) -> None:
    alone = encoder(shapes_engine)([("a red star", 20)])
    among = encoder(shapes_engine)([(p, 20) for p in ("", "an owl", "a red star", "fox", "hen")])
    assert same(alone["a red star", 20], among["a red star", 20])
    assert not same(among["", 20], among["a red star", 20])


def test_the_latest_texts_are_kept_within_the_bytes_allowed(shapes_engine: ShapesEngine) -> None:
    (one,) = encoder(shapes_engine)([("owl", 20)]).values()
    encode = encoder(shapes_engine, cache_bytes=3 * one.nbytes)
    words = [(word, 20) for word in ("a", "b", "c", "d", "e")]
    assert len(encode(words)) == 5  # more than are kept are answered
    assert [encode.knows([word]) for word in words] == [False, False, True, True, True]
    encode([words[2]])  # used again, so it outlives the others
    encode([("f", 20), ("g", 20)])
    assert [encode.knows([word]) for word in words] == [False, False, True, False, False]
    assert encode.encoded == 7


def test_a_text_larger_than_the_cache_is_answered_and_not_kept(shapes_engine: ShapesEngine) -> None:
    encode = encoder(shapes_engine, cache_bytes=10)
    assert ("owl", 20) in encode([("owl", 20)])
    assert not encode.knows([("owl", 20)])


def test_a_kept_text_does_not_hold_its_batch(shapes_engine: ShapesEngine) -> None:
    for text in encoder(shapes_engine, batch=8)([("owl", 20)]).values():
        assert text.states_TW.untyped_storage().nbytes() == text.states_TW.nbytes
        assert text.pooled_P.untyped_storage().nbytes() == text.pooled_P.nbytes


def test_tokens_that_did_not_fit_are_counted(shapes_engine: ShapesEngine) -> None:
    texts = encoder(shapes_engine)([("red " * 40, 20), ("red", 20)])
    assert texts["red " * 40, 20].dropped > 0
    assert texts["red", 20].dropped == 0


@pytest.mark.parametrize("tiling", [None, Tiling(6, 4)])
def test_a_pictures_bits_do_not_depend_on_its_neighbours(
    shapes_engine: ShapesEngine, tiling: Tiling | None
) -> None:
    coder = shapes_engine().pictures
    several = [picture(i, 64, 80) for i in range(3)]
    among = coder.encode(several, 2, tiling)
    (alone,) = coder.encode(several[2:], 2, tiling)
    assert torch.equal(alone, among[2])
    assert torch.equal(
        coder.decode([alone], 2, tiling)[0], coder.decode([among[0], alone], 2, tiling)[1]
    )


def test_what_comes_out_is_float32_whatever_computes(shapes_engine: ShapesEngine) -> None:
    coder: PictureCoder = shapes_engine(torch_dtype=torch.bfloat16).pictures
    (z,) = coder.encode([picture(0)], 1, None)
    (x,) = coder.decode([z], 1, None)
    assert (z.shape, z.dtype) == ((16, 8, 8), torch.float32)
    assert (x.shape, x.dtype) == ((3, 64, 64), torch.float32)


def test_no_pictures_are_no_work(shapes_engine: ShapesEngine) -> None:
    assert shapes_engine().pictures.encode([], 2, None) == []
    assert shapes_engine().pictures.decode([], 2, None) == []


def test_latents_of_any_type_are_decoded(shapes_engine: ShapesEngine) -> None:
    coder = shapes_engine().pictures
    z = noise(0, 16, 8, 8)
    assert torch.equal(coder.decode([z.double()], 1, None)[0], coder.decode([z], 1, None)[0])


def test_pictures_are_laid_out_as_the_devices_convolutions_want_them() -> None:
    assert layout_for(torch.device("cuda")) == torch.channels_last
    assert layout_for(torch.device("cpu")) == torch.contiguous_format  # see there


def test_texts_that_memory_is_too_short_for_are_encoded_in_smaller_batches_and_say_so(
    shapes_engine: ShapesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [(p, 20) for p in ("an owl", "a red star", "fox", "hen", "")]
    expected = encoder(shapes_engine, batch=2)(prompts)
    encode = encoder(shapes_engine, batch=8)
    t5_states = encode_module.t5_states

    def crowded(t5: Any, ids_BT: Tensor) -> Tensor:
        if len(ids_BT) > 3:
            raise torch.OutOfMemoryError("no room on the card")
        return t5_states(t5, ids_BT)

    monkeypatch.setattr(encode_module, "t5_states", crowded)
    made = encode(prompts)
    assert all(same(made[key], expected[key]) for key in prompts)
    assert {text.halved for text in made.values()} == {2}
    assert encode.encoded == 5
    assert encode(prompts[:1])[prompts[0]].halved == 2  # kept, and still told
