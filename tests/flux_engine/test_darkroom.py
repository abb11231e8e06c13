import pytest
import torch

from flux_engine.darkroom import Darkroom
from flux_engine.request import ONLOOKER
from flux_engine.rows import Denoised, Latents
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import asked, noise, picture
from tests.flux_engine.crowded import Crowded


def darkroom(shapes_engine: ShapesEngine) -> Darkroom:
    return shapes_engine(decode_batch=2).darkroom


def test_input_pictures_are_encoded_by_row(shapes_engine: ShapesEngine) -> None:
    room = darkroom(shapes_engine)
    rows = {3: asked(input_image=picture(1)), 4: asked(), 7: asked(input_image=picture(2))}
    made = room.encode_inputs(rows)
    assert list(made) == [3, 7]
    assert torch.equal(made[7].values, dict(room.encode([picture(2)]))[0].values)


def test_only_full_batches_are_decoded_as_long_as_more_may_come(
    shapes_engine: ShapesEngine,
) -> None:
    room = darkroom(shapes_engine)
    rows = {i: asked(seed=i) for i in range(3)}
    latents: Latents = {i: Denoised(noise(i, 16, 8, 8), 2) for i in rows}
    first = list(room.decode(latents, rows, ONLOOKER, only_full=True))
    assert [i for i, *_ in first] == [0, 1]
    assert list(latents) == [2]
    ((i, coded, made),) = room.decode(latents, rows, ONLOOKER)
    assert (i, tuple(coded.values.shape), made.micro_batch) == (2, (3, 64, 64), 2)
    assert not latents


@pytest.mark.parametrize("room", [1, 2])
def test_pictures_that_memory_is_too_short_for_are_coded_in_smaller_batches_and_say_so(
    room: int, shapes_engine: ShapesEngine
) -> None:
    engine = shapes_engine(decode_batch=4)
    small = shapes_engine(decode_batch=room).darkroom
    crowded = Crowded(engine.vae, engine.device, engine.dtype)
    crowded.room = room
    tight = Darkroom(crowded, engine.residency, engine.planning)
    pictures = [picture(i) for i in range(5)]
    made, expected = dict(tight.encode(pictures)), dict(small.encode(pictures))
    assert all(torch.equal(made[i].values, expected[i].values) for i in range(5))
    assert {(made[i].halved, expected[i].halved) for i in range(5)} == {(room, 0)}
    rows = {i: asked(seed=i) for i in range(5)}
    latents: Latents = {i: Denoised(noise(i, 16, 8, 8), 2) for i in rows}
    decoded = {i: coded for i, coded, _ in tight.decode(dict(latents), rows, ONLOOKER)}
    others = {i: coded for i, coded, _ in small.decode(dict(latents), rows, ONLOOKER)}
    assert all(torch.equal(decoded[i].values, others[i].values) for i in rows)
    assert {coded.halved for coded in decoded.values()} == {room}


def test_one_picture_that_does_not_fit_raises(shapes_engine: ShapesEngine) -> None:
    engine = shapes_engine(decode_batch=4)
    crowded = Crowded(engine.vae, engine.device, engine.dtype)
    crowded.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(Darkroom(crowded, engine.residency, engine.planning).encode([picture(0)]))


def test_a_row_tells_of_every_stage_that_was_halved(
    shapes_engine: ShapesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = shapes_engine(decode_batch=2)
    monkeypatch.setattr(engine.darkroom, "coder", Crowded(engine.vae, engine.device, engine.dtype))
    rows = [asked(seed=1), asked(seed=2, input_image=picture(0), denoising_strength=0.5)]
    assert [made.halved for made in engine.generate(rows)] == ["decode 1", "encode 1, decode 1"]
