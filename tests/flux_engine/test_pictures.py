import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flux_engine.pictures import (
    crop_box,
    mask_weights,
    to_image,
    to_pixels,
    training_pixels,
    upright_size,
)


def levels_of(picture: Image.Image, height: int = 1, width: int = 1) -> list[list[float]]:
    """Levels 0…255 by channel and pixel, as they reach the engine."""
    return ((to_pixels(picture, height, width).flatten(1) + 1) * 127.5).tolist()


def test_every_8_bit_level_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels.T, 255 - levels], axis=-1))
    pixels = to_pixels(picture, 16, 16)
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.float32)
    assert (pixels.min().item(), pixels.max().item()) == (-1, 1)
    assert to_image(pixels).tobytes() == picture.tobytes()


def test_values_are_rounded_to_the_nearest_level() -> None:
    levels = torch.tensor([0.4, 0.6, 127.4, 127.6, 254.6])
    pixels = (levels / 127.5 - 1).expand(3, 1, 5)
    assert np.asarray(to_image(pixels))[0, :, 0].tolist() == [0, 1, 127, 128, 255]


def test_values_beyond_the_range_are_cut() -> None:
    pixels = torch.tensor([-1.5, 1.5]).expand(3, 1, 2)
    assert to_image(pixels).getpixel((0, 0)) == (0, 0, 0)
    assert to_image(pixels).getpixel((1, 0)) == (255, 255, 255)


def test_rows_and_columns_keep_their_places() -> None:
    pixels = torch.full((3, 16, 32), -1.0)
    pixels[0, 2, 30] = 1.0
    picture = to_image(pixels)
    assert picture.size == (32, 16)
    assert picture.getpixel((30, 2)) == (255, 0, 0)


def test_a_turned_photograph_is_set_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 1), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert levels_of(turned, 2, 1)[0] == [255, 0]


@pytest.mark.parametrize(("alpha", "level"), [(0, 255), (255, 100), (128, 177)])
def test_transparency_lies_over_white(alpha: int, level: int) -> None:
    picture = Image.new("RGBA", (1, 1), (100, 100, 100, alpha))
    assert levels_of(picture)[0] == pytest.approx([level], abs=0.51)


def test_a_palette_with_a_transparent_colour_lies_over_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=0)
    with Image.open(tmp_path / "palette.png") as opened:
        red, green, blue = levels_of(opened, 1, 2)
    assert [red[0], green[0], blue[0]] == [255, 255, 255]
    assert [red[1], green[1], blue[1]] == pytest.approx([40, 50, 60], abs=0.01)


@pytest.mark.parametrize(("mode", "colour"), [("L", 100), ("1", 1), ("CMYK", (155, 155, 155, 0))])
def test_grey_and_print_colours_become_three_channels(
    mode: str, colour: int | tuple[int, ...]
) -> None:
    red, green, blue = levels_of(Image.new(mode, (1, 1), colour))
    assert [*red, *green, *blue] == pytest.approx([255 if mode == "1" else 100] * 3)


def test_sixteen_bits_of_grey_are_scaled_and_not_cut(tmp_path: Path) -> None:
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as deep:
        assert levels_of(deep, 1, 3)[0] == pytest.approx([0, 100, 255], abs=0.01)


def test_another_shape_is_covered_and_cut_about_its_centre() -> None:
    picture = Image.new("RGB", (96, 32), "black")
    picture.paste((255, 0, 0), (30, 0, 66, 32))
    assert levels_of(picture, 16, 16)[0] == pytest.approx([255] * 256, abs=1.01)
    assert to_pixels(picture, 64, 16).shape == (3, 64, 16)


def test_a_trainers_picture_is_scaled_to_whole_pixels_and_cut() -> None:
    picture = Image.new("RGB", (100, 70), "black")
    picture.paste((255, 0, 0), (50, 0, 100, 70))
    pixels = training_pixels(picture, 48, 64)
    assert pixels.shape == (3, 48, 64)
    assert pixels[0, :, :29].max() == -1
    assert pixels[0, :, 35:].min() == 1
    assert torch.equal(training_pixels(picture, 70, 100), to_pixels(picture, 70, 100))


@pytest.mark.parametrize(
    ("size", "height", "width", "box"),
    [
        ((64, 48), 48, 64, (0, 0, 64, 48)),
        ((96, 32), 16, 16, (32, 0, 64, 32)),
        ((100, 70), 48, 64, (3, 0, 97, 70)),
        ((40, 100), 64, 64, (0, 30, 40, 70)),
    ],
)
def test_what_is_seen_of_a_picture_is_told_in_its_own_pixels(
    size: tuple[int, int], height: int, width: int, box: tuple[int, ...]
) -> None:
    assert crop_box(size, height, width) == box
    picture = Image.new("RGB", size, "black")
    picture.paste((255, 0, 0), box)
    assert training_pixels(picture, height, width)[0].mean() > 0.95


def test_a_mask_lies_where_its_picture_lies() -> None:
    mask = Image.new("L", (200, 140), 0)
    mask.paste(255, (100, 0, 200, 140))
    weights = mask_weights(mask, 48, 64)
    assert weights.shape == (1, 48, 64)
    assert (weights[0, :, :31].max(), weights[0, :, 33:].min()) == (0, 1)


def test_of_a_mask_what_is_transparent_is_not_trained_on() -> None:
    mask = Image.new("LA", (2, 1), (255, 255))
    mask.putpixel((0, 0), (255, 0))
    assert mask_weights(mask, 1, 2).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("orientation", "size"), [(1, (2, 1)), (3, (2, 1)), (6, (1, 2))])
def test_a_size_is_told_as_the_picture_is_shown(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.new("RGB", (2, 1)).save(out, "PNG", exif=exif)
    assert upright_size(Image.open(out)) == size
