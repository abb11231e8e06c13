"""How well a trained folder follows prompts, by the ruler, at the folder's own defaults.

Shape letters: N pictures, S image tokens, C patch channels.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flux_engine.models.vae import AutoEncoder
from shapes.flow import Text, Velocity, pictures, sample
from shapes.recipe import Recipe
from shapes.text import TextEncoders
from shapes.world import keyed

AT_ONCE = 128


@dataclass(frozen=True)
class Questions:
    """Attributes to ask for, (N, A), their captions, and the noise to start from, (N, S, C)."""

    rows: Tensor
    captions: list[str]
    noise: Tensor

    @classmethod
    def pick(cls, recipe: Recipe, count: int, *, unseen: bool) -> "Questions":
        """Combinations that training never had, or those that it had, in a fixed order."""
        world = recipe.world
        rows = world.part(unseen=unseen)
        rows = rows[torch.randperm(len(rows), generator=keyed("questions", unseen))[:count]]
        shape = len(rows), recipe.grid**2, recipe.transformer.channels_in
        noise = torch.randn(shape, generator=keyed("question noise", unseen))
        captions = [world.caption(row, i) for i, row in enumerate(rows)]
        return cls(rows, captions, noise)


@torch.no_grad()
def answers(
    velocity: Velocity,
    vae: AutoEncoder,
    encoders: TextEncoders,
    questions: Questions,
    *,
    steps: int,
    shift: float,
    guidance: float,
) -> Tensor:
    """Pictures (N, 3, H, W) of the questions' captions."""
    text = Text(*encoders(questions.captions)).to(velocity.device)
    made = []
    for start in range(0, len(text), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        noise = questions.noise[part].to(velocity.device)
        x = sample(velocity, noise, text[part], steps=steps, shift=shift, guidance=guidance)
        made.append(pictures(vae, x).cpu())
    return torch.cat(made)


def contact_sheet(path: Path, *rows_N3HW: Tensor, zoom: int = 2) -> None:
    """Rows of pictures in one PNG."""
    lines = [torch.cat([*row.float().clamp(0, 1)], dim=2) for row in rows_N3HW]
    sheet = (torch.cat(lines, dim=1).permute(1, 2, 0) * 255).round().byte().numpy()
    picture = Image.fromarray(sheet)
    size = (picture.width * zoom, picture.height * zoom)
    picture.resize(size, Image.Resampling.NEAREST).save(path)
