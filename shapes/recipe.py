"""What is made for a world: the sizes of its model, and how long each stage of training is."""

from dataclasses import dataclass, replace
from typing import Literal

from flux_engine.models.dit import FluxSpec
from flux_engine.models.vae import VaeSpec
from shapes.world import World
from shapes.worlds.one import One
from shapes.worlds.two import Two

TEXT_WIDTH = 64  # of both text encoders


@dataclass(frozen=True)
class Recipe:
    """Sizes, sampling defaults, and the stages' steps, rates and batches."""

    world: World
    transformer: FluxSpec  # with embedded guidance
    autoencoder: VaeSpec
    text_length: int  # of T5
    steps: int = 16
    guidance: float = 2.0
    shift: float = 1.5

    small_steps: int = 900  # of the autoencoder's, at half size
    small_batch: int = 32
    vae_steps: int = 1600
    vae_batch: int = 12
    gain_pictures: int = 256  # whose latents get unit deviation
    pictures: int = 12288
    teacher_steps: int = 1800
    teacher_rate: float = 1.5e-3
    guidance_steps: int = 500
    guidance_rate: float = 5e-4
    batch: int = 64
    questions: int = 256  # pictures in each line of a score

    @property
    def unguided(self) -> FluxSpec:
        """The teacher's."""
        return replace(self.transformer, guidance=False)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.world.side // (8 * 2)


SMALL = FluxSpec(
    width=128, heads=4, axes=(4, 14, 14), inner=512, double_blocks=2, single_blocks=4,
    text_width=TEXT_WIDTH, pooled_width=TEXT_WIDTH, guidance=True,
)  # fmt: skip
# 10 M parameters: 20 MB in bfloat16
LARGE = replace(SMALL, width=192, heads=6, inner=768, double_blocks=4, single_blocks=8)
VAE = VaeSpec(widths=(32, 32, 64, 64))

ONE = Recipe(One(), SMALL, VAE, text_length=20)  # the longest caption takes 14
# lengths are for a GPU and are estimates: nobody has trained it yet
TWO = Recipe(
    Two(), LARGE, VAE, text_length=24,  # the longest caption takes 18
    steps=28, small_steps=2000, small_batch=64, vae_steps=6000, vae_batch=32, pictures=49152,
    teacher_steps=16000, teacher_rate=1e-3, guidance_steps=2000, batch=256, questions=512,
)  # fmt: skip

Name = Literal["one", "two"]


def recipe(name: Name) -> Recipe:
    match name:
        case "one":
            return ONE
        case "two":
            return TWO
