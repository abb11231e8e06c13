import torch

from flux_engine.darkroom import Darkroom
from flux_engine.request import ONLOOKER
from flux_engine.rows import Denoised, Latents
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import asked, noise, picture


def darkroom(shapes_engine: ShapesEngine) -> Darkroom:
    return shapes_engine(decode_batch=2).darkroom


def test_input_pictures_are_encoded_by_row(shapes_engine: ShapesEngine) -> None:
    room = darkroom(shapes_engine)
    rows = {3: asked(input_image=picture(1)), 4: asked(), 7: asked(input_image=picture(2))}
    made = room.encode_inputs(rows)
    assert list(made) == [3, 7]
    assert torch.equal(made[7], dict(room.encode([picture(2)]))[0])


def test_only_full_batches_are_decoded_as_long_as_more_may_come(
    shapes_engine: ShapesEngine,
) -> None:
    room = darkroom(shapes_engine)
    rows = {i: asked(seed=i) for i in range(3)}
    latents: Latents = {i: Denoised(noise(i, 16, 8, 8), 2) for i in rows}
    first = list(room.decode(latents, rows, ONLOOKER, only_full=True))
    assert [i for i, *_ in first] == [0, 1]
    assert list(latents) == [2]
    ((i, pixels, made),) = room.decode(latents, rows, ONLOOKER)
    assert (i, tuple(pixels.shape), made.micro_batch) == (2, (3, 64, 64), 2)
    assert not latents
