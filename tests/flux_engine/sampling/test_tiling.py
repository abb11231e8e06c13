from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flux_engine.sampling.tiling import Tiling, axis_weights, starts, tiled
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import asked, noise, picture

LENGTHS = [
    (2, 6, 4), (6, 6, 4), (8, 6, 4), (10, 6, 4), (50, 6, 4), (42, 6, 6), (20, 12, 1), (7, 1, 1),
]  # fmt: skip


def enlarge(z: Tensor) -> Tensor:
    return F.interpolate(z, scale_factor=8.0, mode="nearest")


def shrink(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 8)


def decoded(function: Callable[[Tensor], Tensor], z: Tensor, tiling: Tiling) -> Tensor:
    return tiled(function, z, tiling, cell=1, scale=Fraction(8))


def encoded(function: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling) -> Tensor:
    return tiled(function, x, tiling, cell=8, scale=Fraction(1, 8))


@pytest.mark.parametrize(("length", "size", "stride"), LENGTHS)
def test_tiles_cover_an_axis_and_none_leaves_it(length: int, size: int, stride: int) -> None:
    begins = starts(length, size, stride)
    covered = {cell for b in begins for cell in range(b, b + size)}
    assert begins == sorted(set(begins))
    assert begins[0] == 0
    assert covered >= set(range(length))
    assert length < size or max(covered) == length - 1


@pytest.mark.parametrize(("length", "size", "stride"), LENGTHS)
def test_every_cell_has_weight_and_borders_do_not_fade(length: int, size: int, stride: int) -> None:
    begins = starts(length, size, stride)
    weights = axis_weights(begins, size, length)
    total = torch.zeros(length)
    for begin, weight in zip(begins, weights, strict=True):
        assert ((weight > 0) & (weight <= 1)).all()
        total[begin : begin + len(weight)] += weight
    assert (total > 0).all()
    assert weights[0][0] == 1
    assert weights[-1][-1] == 1


def test_two_neighbours_weights_sum_to_one() -> None:
    one, two = axis_weights([0, 4], 6, 10)
    torch.testing.assert_close(one[4:] + two[:2], torch.ones(2))


@pytest.mark.parametrize("tiling", [Tiling(6, 4), Tiling(6, 6), Tiling(16, 3), Tiling(2, 1)])
@pytest.mark.parametrize(("height", "width"), [(64, 80), (160, 96), (400, 336), (16, 48)])
def test_a_local_function_is_the_same_in_tiles(tiling: Tiling, height: int, width: int) -> None:
    z_BCHW = noise(0, 2, 3, height // 8, width // 8)
    torch.testing.assert_close(decoded(enlarge, z_BCHW, tiling), enlarge(z_BCHW))
    x_BCHW = noise(1, 1, 3, height, width)
    torch.testing.assert_close(encoded(shrink, x_BCHW, tiling), shrink(x_BCHW))


@pytest.mark.parametrize("tiling", [Tiling(6, 4), Tiling(16, 3), Tiling(5, 5)])
def test_a_constant_comes_out_exactly(tiling: Tiling) -> None:
    z_BCHW = noise(0, 1, 4, 50, 42)
    out = decoded(lambda z: torch.full((1, 3, 8 * z.shape[2], 8 * z.shape[3]), 0.3), z_BCHW, tiling)
    torch.testing.assert_close(out, torch.full((1, 3, 400, 336), 0.3), rtol=1e-6, atol=0)


def test_one_tile_that_covers_all_is_the_function_itself() -> None:
    z_BCHW = noise(0, 1, 4, 8, 10)
    assert torch.equal(decoded(enlarge, z_BCHW, Tiling(10, 4)), enlarge(z_BCHW))


def test_no_tile_is_larger_than_asked() -> None:
    seen: set[tuple[int, ...]] = set()

    def watch(z: Tensor) -> Tensor:
        seen.add(tuple(z.shape[2:]))
        return enlarge(z)

    decoded(watch, noise(0, 1, 4, 50, 4), Tiling(6, 4))
    assert seen == {(6, 4)}


def test_results_are_joined_in_float32() -> None:
    z_BCHW = noise(0, 1, 3, 10, 10)
    out = decoded(lambda z: enlarge(z).bfloat16(), z_BCHW, Tiling(6, 4))
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("height", "width", "dtype"),
    [(64, 80, torch.float32), (160, 96, torch.float32), (400, 336, torch.bfloat16)],
    ids=str,
)
def test_the_engine_works_in_tiles_at_every_size(
    shapes_engine: ShapesEngine, height: int, width: int, dtype: torch.dtype
) -> None:
    engine = shapes_engine(torch_dtype=dtype, text_batch=1, micro_batch=1, decode_batch=1)
    tiles: dict[str, Any] = {"tiled": True, "tile_size": 14, "tile_stride": 9}
    request = asked(
        height=height, width=width, num_inference_steps=1, denoising_strength=0.5,
        input_image=picture(0, height, width), **tiles,
    )  # fmt: skip
    (made,) = engine.generate([request])
    assert made.pixels.shape == (3, height, width)
    assert made.pixels.isfinite().all()


def test_tiles_that_cover_the_picture_change_no_bit(shapes_engine: ShapesEngine) -> None:
    request: dict[str, Any] = {"denoising_strength": 0.5, "input_image": picture(0)}
    whole, in_one_tile = shapes_engine().generate(
        [asked(**request), asked(**request, tiled=True, tile_size=8, tile_stride=4)]
    )
    assert torch.equal(whole.latents, in_one_tile.latents)
    assert torch.equal(whole.pixels, in_one_tile.pixels)


def test_generous_tiles_of_the_real_autoencoder_come_close(shapes_engine: ShapesEngine) -> None:
    coder = shapes_engine().pictures
    x = [picture(3, 128, 128)]
    z = coder.encode(x, 1, None)
    whole = coder.decode(z, 1, None)[0]
    joined = coder.decode(z, 1, Tiling(14, 7))[0]
    in_halves = coder.decode(z, 1, Tiling(8, 8))[0]

    def off(pixels: Tensor) -> float:
        return float((pixels - whole).norm() / whole.norm())

    assert 0 < off(joined) < 0.5
    assert off(joined) < off(in_halves)
    joined_z = coder.encode(x, 1, Tiling(14, 7))[0]
    assert (joined_z - z[0]).norm() < 0.5 * z[0].norm()
