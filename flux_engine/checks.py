"""Whether an engine can make a picture at all, told before it begins."""

from collections.abc import Iterator

import torch

from flux_engine.request import GenerationRequest


def faults_of(request: GenerationRequest, cell: int) -> Iterator[str]:
    """What is wrong with a request, each with what is allowed; sizes are multiples of `cell`."""
    size = (request.height, request.width)
    if any(side < cell or side % cell for side in size):
        yield f"height {request.height} and width {request.width} must be multiples of {cell}"
    yield from request.faults()
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if request.rand_device not in devices:
        yield f"rand_device is {request.rand_device!r}; allowed here: {', '.join(devices)}"
    picture = request.input_image
    if picture is not None and tuple(picture.shape) != (3, *size):
        yield (
            f"input_image is {tuple(picture.shape)} and the picture to make is (3, {size[0]}, "
            f"{size[1]})"
        )
    if picture is not None and not picture.is_floating_point():
        yield f"input_image is of {picture.dtype}; allowed are floats in −1…1"
