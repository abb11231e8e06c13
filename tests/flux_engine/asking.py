"""Small requests for the bundled model: 64×64 pixels, two steps."""

from typing import Any

import torch
from torch import Tensor

from flux_engine.request import GenerationRequest


def asked(
    prompt: str = "a red circle on a blue ground", seed: int = 0, **other: Any
) -> GenerationRequest:
    small: dict[str, Any] = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "t5_sequence_length": 20,
    }
    return GenerationRequest(prompt=prompt, seed=seed, **(small | other))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int, height: int = 64, width: int = 64) -> Tensor:
    """Smooth colours, (3, height, width) in −1…1."""
    coarse = noise(seed, 1, 3, 4, 4)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].tanh()
