"""What the engine is asked, what it answers, and who may watch it. Brings no model along."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from flux_engine.errors import RequestError

Schedule = Literal["flux", "diffsynth"]


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """One LoRA, by its file or a model hub's repository, and how strongly it is used.

    `merged` False wants it beside the weights, True merged into a copy of them; None: beside if it
    is low-rank.
    """

    path: str | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    download_source: Literal["modelscope", "huggingface"] = "modelscope"
    scale: float = 1.0
    merged: bool | None = None

    @property
    def name(self) -> str:
        """What it is called in logs and records."""
        if self.path is not None:
            return self.path
        return f"{self.model_id}" + (f":{p}" if (p := self.origin_file_pattern) else "")

    def faults(self) -> Iterator[str]:
        if (self.path is None) == (self.model_id is None):
            yield f"a LoRA has path {self.path!r} and model_id {self.model_id!r}: give one of them"
        if not math.isfinite(self.scale):
            yield f"{self.name}: scale is {self.scale}; allowed are numbers"


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One picture to make; every value is given, none is looked up later.

    Sizes are pixels and multiples of 16; `denoising_strength` (0…1] counts only with an
    `input_image`, which is (3, height, width) in −1…1. `cfg_scale` other than 1 means
    classifier-free guidance with `negative_prompt`. `sigma_shift` bends the noise schedule;
    None takes the model's own. `decode` False leaves it at latents; `traced` keeps the path that
    led there, as velocities of so many `segments` (None: of each step).
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
    loras: tuple[LoraUse, ...] = ()
    decode: bool = True
    traced: bool = False
    segments: int | None = None

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.cfg_scale != 1.0

    def faults(self) -> Iterator[str]:
        """What is outside the range that any model could serve, each with what is allowed."""
        if not 0.0 < self.denoising_strength <= 1.0:
            yield f"denoising_strength is {self.denoising_strength}; allowed are 0 (excluded) to 1"
        if self.sigma_shift is not None and not self.sigma_shift > 0.0:
            yield f"sigma_shift is {self.sigma_shift}; allowed is what is larger than 0"
        for name in ("num_inference_steps", "t5_sequence_length"):
            if getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}; allowed are 1 and more"
        if self.tiled and not 1 <= self.tile_stride <= self.tile_size:
            yield f"tile_stride is {self.tile_stride}; allowed are 1 to tile_size {self.tile_size}"
        if not -(2**63) <= self.seed < 2**64:
            yield f"seed is {self.seed}; allowed are 64 bits"
        if self.segments is not None and self.segments < 1:
            yield f"segments is {self.segments}; allowed are 1 and more"
        for lora in self.loras:
            yield from lora.faults()
        if self.schedule not in get_args(Schedule):
            yield f"schedule is {self.schedule!r}; allowed are {', '.join(get_args(Schedule))}"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A path from noise to latents: (K, Z, H/8, W/8) velocities in float32 on the host, and the
    K + 1 noise levels at which its segments meet."""

    velocities: Tensor
    sigmas: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One picture: pixels (3, height, width) around −1…1 in float32, and what it was made with.

    Without a decoder's turn pixels are None.

    `micro_batch` is the number of rows it was denoised among, `tokens_dropped` how many T5 tokens
    of the prompt did not fit into `t5_sequence_length`, `loras` the SHA-256 of each LoRA's file,
    `approximate` in what it differs from the exact picture on purpose, `halved` the stages besides
    that took fewer rows at once than was chosen, because memory was short ("text 4, decode 1").
    """

    pixels: Tensor | None
    latents: Tensor
    sigma_shift: float
    micro_batch: int
    tokens_dropped: int
    approximate: str = ""
    halved: str = ""
    loras: tuple[str, ...] = ()
    trace: Trace | None = None

    @property
    def picture(self) -> Tensor:
        """The pixels of a request that asked for them."""
        assert self.pixels is not None, "latents alone were asked for"
        return self.pixels


Outcome = Generation | RequestError


class Watch:
    """Told what is about to be computed, and asked whether to go on. This one only lets work."""

    def at(self, stage: str, rows: Sequence[int]) -> None:
        """These requests (by number) are next, in this stage; none, if no request is to blame for
        what happens in it."""

    def leaving(self) -> bool:
        """Asked before each micro-batch: whether to leave it, and all that follow, undone."""
        return False


ONLOOKER = Watch()
