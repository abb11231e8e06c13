"""What counts as agreement with another implementation, both in float32."""

from torch import Tensor

LATENTS = 1e-5  # largest difference, in standard deviations of the oracle's row
PIXELS_MEAN = 2e-5  # norm of the difference, by the norm of the oracle's picture
PIXELS_MAX = 1e-4  # largest difference of pixels in −1…1


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in standard deviations of what is expected."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.std()).item()


def assert_latents_agree(ours_BZHW: Tensor, theirs_BZHW: Tensor) -> None:
    """Row by row: a row with small values is not measured by its neighbours' large ones."""
    pairs = zip(ours_BZHW, theirs_BZHW, strict=True)
    deviations = [deviation(ours, theirs) for ours, theirs in pairs]
    assert max(deviations) <= LATENTS, f"standard deviations off, by row: {deviations}"


def assert_pixels_agree(ours: Tensor, theirs: Tensor) -> None:
    """For pictures in −1…1, or batches of them."""
    assert ours.shape == theirs.shape
    difference = ours - theirs
    mean, largest = (difference.norm() / theirs.norm()).item(), difference.abs().max().item()
    assert mean <= PIXELS_MEAN, f"relative norm {mean}"
    assert largest <= PIXELS_MAX, f"largest difference {largest}"
