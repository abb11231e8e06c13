"""The small transformer, how it is asked for a velocity, and Euler's way from noise to latents.

This is the sampler that training checks itself with; the engine has its own. Shape letters:
B batch, S image tokens, T text tokens, C patch channels, W text width, P pooled width.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from flux_engine.training.loss import guided_target
from shapes.world import blocks

PATCH = 2
DECODED_AT_ONCE = 64


@dataclass(frozen=True)
class Text:
    """What the encoders say about a batch of prompts: sequences (B, T, W), pooled (B, P)."""

    sequence: Tensor
    pooled: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Text":
        return Text(self.sequence[index], self.pooled[index])

    def __len__(self) -> int:
        return len(self.pooled)

    def to(self, device: torch.device) -> "Text":
        return Text(self.sequence.float().to(device), self.pooled.float().to(device))

    def expand(self, count: int) -> "Text":
        """One prompt's text, `count` times."""
        sequence, pooled = self.sequence, self.pooled
        return Text(sequence.expand(count, -1, -1), pooled.expand(count, -1))

    def without(self, dropped_B: Tensor, empty: "Text") -> "Text":
        """The empty prompt in place of the dropped ones."""
        return Text(
            torch.where(dropped_B[:, None, None], empty.sequence, self.sequence),
            torch.where(dropped_B[:, None], empty.pooled, self.pooled),
        )


def pack(z_BCHW: Tensor) -> Tensor:
    return rearrange(z_BCHW, "B C (h p) (w q) -> B (h w) (C p q)", p=PATCH, q=PATCH)


def unpack(x_BSC: Tensor) -> Tensor:
    """Of a square picture."""
    grid = math.isqrt(x_BSC.shape[1])
    return rearrange(x_BSC, "B (h w) (C p q) -> B C (h p) (w q)", h=grid, p=PATCH, q=PATCH)


def positions(text: int, patches: int) -> Tensor:
    """Position ids, (T + S, 3): zeros for text, then row and column of each of S patches."""
    patch, grid = torch.arange(patches), math.isqrt(patches)
    image = torch.stack([torch.zeros_like(patch), patch // grid, patch % grid], dim=1)
    return torch.cat([torch.zeros(text, 3, dtype=torch.long), image])


def initialise(net: FluxTransformer) -> None:
    """Every block starts as the identity, and the velocity at zero."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in net.named_parameters():
        if name.endswith(("lin.weight", "adaLN_modulation.1.weight", "final_layer.linear.weight")):
            nn.init.zeros_(parameter)
    if net.guidance_in is not None:
        nn.init.zeros_(net.guidance_in.out_layer.weight)


class Velocity:
    """A transformer with the positions of square pictures filled in."""

    def __init__(self, net: FluxTransformer) -> None:
        self.net = net
        self.device = net.img_in.weight.device
        self.rotations: dict[tuple[int, int], Tensor] = {}

    def __call__(self, x_BSC: Tensor, sigma_B: Tensor, text: Text, guidance_B: Tensor) -> Tensor:
        rows = self.net.modulate(self.net.condition(sigma_B, text.pooled, guidance_B))
        rotation = self.rotation(text.sequence.shape[1], x_BSC.shape[1])
        velocity: Tensor = self.net(x_BSC, text.sequence, rows, rotation)
        return velocity

    def rotation(self, text: int, patches: int) -> Tensor:
        """Of so many text tokens and patches; computed once."""
        size = text, patches
        if size not in self.rotations:
            self.rotations[size] = self.net.rotation(positions(*size).to(self.device))
        return self.rotations[size]


def sigmas(steps: int, shift: float) -> list[float]:
    """Noise levels from 1 to 0, one more than there are steps."""
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * u / (1 + (shift - 1) * u) for u in even]


@torch.no_grad()
def sample(
    velocity: Velocity, noise_BSC: Tensor, text: Text, *, steps: int, shift: float, guidance: float
) -> Tensor:
    """Packed latents in one pass a step, with embedded guidance."""
    x, levels = noise_BSC, sigmas(steps, shift)
    guidance_B = torch.full((len(x),), guidance, device=x.device)
    for sigma, after in pairwise(levels):
        sigma_B = torch.full((len(x),), sigma, device=x.device)
        x = x + (after - sigma) * velocity(x, sigma_B, text, guidance_B)
    return x


class ClassifierFree(Velocity):
    """Two passes as one: with the prompt and without it, `guidance_B` apart."""

    def __init__(self, net: FluxTransformer, empty: Text) -> None:
        super().__init__(net)
        self.empty = empty

    def __call__(self, x_BSC: Tensor, sigma_B: Tensor, text: Text, guidance_B: Tensor) -> Tensor:
        ask = super().__call__
        conditional = ask(x_BSC, sigma_B, text, guidance_B)
        unconditional = ask(x_BSC, sigma_B, self.empty.expand(len(x_BSC)), guidance_B)
        return guided_target(unconditional, conditional, guidance_B)


@torch.no_grad()
def pictures(vae: AutoEncoder, x_BSC: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in 0…1 of packed latents."""
    parts = [vae.decode(unpack(part)) for part in blocks(x_BSC, DECODED_AT_ONCE)]
    return ((torch.cat(parts) + 1) / 2).clamp(0, 1)
