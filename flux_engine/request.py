"""What the engine is asked, and what it answers."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Schedule = Literal["flux", "diffsynth"]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One picture to make; every value is given, none is looked up later.

    Sizes are pixels and multiples of 16; `denoising_strength` (0…1] counts only with an
    `input_image`, which is (3, height, width) in −1…1. `cfg_scale` other than 1 means
    classifier-free guidance with `negative_prompt`. `sigma_shift` bends the noise schedule;
    None takes the model's own.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    cfg_scale: float = 1.0
    embedded_guidance: float = 3.5
    height: int = 1024
    width: int = 1024
    rand_device: str = "cpu"
    num_inference_steps: int = 30
    t5_sequence_length: int = 512
    schedule: Schedule = "flux"
    sigma_shift: float | None = None
    denoising_strength: float = 1.0
    input_image: Tensor | None = field(default=None, compare=False)
    tiled: bool = False
    tile_size: int = 128
    tile_stride: int = 64

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.cfg_scale != 1.0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One picture: pixels (3, height, width) around −1…1 in float32, and what it was made with.

    `micro_batch` is the number of rows it was denoised among, `tokens_dropped` how many T5 tokens
    of the prompt did not fit into `t5_sequence_length`.
    """

    pixels: Tensor
    latents: Tensor
    sigma_shift: float
    micro_batch: int
    tokens_dropped: int
