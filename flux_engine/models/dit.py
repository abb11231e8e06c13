"""The FLUX.1 transformer: latent patches, text and conditions into a velocity.

Shape letters: B batch, S image tokens, T text tokens, L = T + S, C patch channels, D hidden
width, P pooled width, A position axes, M modulation vectors. Parameter names are those of the
files that Black Forest Labs publish, so those load as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flux_engine.models.blocks import DoubleBlock, FinalLayer, SingleBlock
from flux_engine.models.embedders import SINUSOID_WIDTH, MLPEmbedder, sinusoid
from flux_engine.models.rope import rotation


@dataclass(frozen=True)
class FluxSpec:
    """Widths and depths of one transformer; the defaults are FLUX.1-dev's."""

    width: int = 3072
    heads: int = 24
    axes: tuple[int, ...] = (16, 56, 56)
    inner: int = 12288
    double_blocks: int = 19
    single_blocks: int = 38
    channels_in: int = 64
    channels_out: int = 64
    text_width: int = 4096
    pooled_width: int = 768
    guidance: bool = True


class FluxTransformer(nn.Module):
    """Velocity (noise − data) of packed latents; source: the FLUX.1 reference architecture."""

    def __init__(self, spec: FluxSpec) -> None:
        super().__init__()
        self.spec = spec
        width, heads, inner = spec.width, spec.heads, spec.inner
        self.img_in = nn.Linear(spec.channels_in, width)
        self.txt_in = nn.Linear(spec.text_width, width)
        self.time_in = MLPEmbedder(SINUSOID_WIDTH, width)
        self.vector_in = MLPEmbedder(spec.pooled_width, width)
        self.guidance_in = MLPEmbedder(SINUSOID_WIDTH, width) if spec.guidance else None
        self.double_blocks = nn.ModuleList(
            DoubleBlock(width, heads, inner) for _ in range(spec.double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            SingleBlock(width, heads, inner) for _ in range(spec.single_blocks)
        )
        self.final_layer = FinalLayer(width, spec.channels_out)

    def condition(self, sigma_B: Tensor, pooled_BP: Tensor, guidance_B: Tensor) -> Tensor:
        """One vector (B, D) for noise level (0…1), pooled text and embedded guidance.

        `guidance_B` has no effect in a model without a guidance embedder (FLUX.1-schnell).
        """
        dtype = pooled_BP.dtype
        c_BD: Tensor = self.time_in(sinusoid(1000.0 * sigma_B.float()).to(dtype))
        if self.guidance_in is not None:
            c_BD = c_BD + self.guidance_in(sinusoid(1000.0 * guidance_B.float()).to(dtype))
        out: Tensor = c_BD + self.vector_in(pooled_BP)
        return out

    def modulate(self, c_BD: Tensor) -> Tensor:
        """All rows of the modulation table, (B, M, D), in the order in which blocks use them.

        More than a quarter of FLUX.1's parameters act here and nowhere else, on one vector: so
        this runs once for all steps of a micro-batch, before the loop.
        """
        parts = [part.modulate(c_BD) for part in self.modulated_parts()]
        return torch.cat(parts, dim=1)

    def modulated_parts(self) -> Iterator[DoubleBlock | SingleBlock | FinalLayer]:
        yield from self.double_blocks  # type: ignore[misc]
        yield from self.single_blocks  # type: ignore[misc]
        yield self.final_layer

    def rotation(self, ids_LA: Tensor) -> Tensor:
        """Rotary table of text and image positions, in that order."""
        return rotation(ids_LA, self.spec.axes)

    def forward(
        self, x_BSC: Tensor, text_BTW: Tensor, rows_BMD: Tensor, rotation_2LR: Tensor
    ) -> Tensor:
        """The velocity, (B, S, C), of one step; `rows_BMD` are that step's rows of the table."""
        out_BSD = self.through_blocks(
            self.img_in(x_BSC), self.txt_in(text_BTW), rows_BMD, rotation_2LR
        )
        velocity: Tensor = self.final_layer(out_BSD, rows_BMD[:, -FinalLayer.MODULATIONS :])
        return velocity

    def through_blocks(
        self, img_BSD: Tensor, txt_BTD: Tensor, rows_BMD: Tensor, rotation_2LR: Tensor
    ) -> Tensor:
        """The image's hidden values, (B, S, D), behind all blocks."""
        rows = iter(torch.split(rows_BMD, [p.MODULATIONS for p in self.modulated_parts()], dim=1))
        for block in self.double_blocks:
            img_BSD, txt_BTD = block(img_BSD, txt_BTD, next(rows), rotation_2LR)
        T = txt_BTD.shape[1]
        x_BLD = torch.cat([txt_BTD, img_BSD], dim=1)
        del img_BSD, txt_BTD  # their memory is the single blocks'
        for block in self.single_blocks:
            x_BLD = block(x_BLD, next(rows), rotation_2LR)
        return x_BLD[:, T:]
