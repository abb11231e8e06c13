"""The size at which a picture is trained on; without torch, for whoever plans."""

import math


def training_size(width: int, height: int, max_pixels: int, step: int) -> tuple[int, int]:
    """The width and height at which a picture is trained on: scaled down to at most `max_pixels`,
    each side cut to a multiple of `step` (but for that, one of them); never enlarged beyond it."""
    if width * height > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        width, height = int(width / scale), int(height / scale)
    return max(width // step, 1) * step, max(height // step, 1) * step
