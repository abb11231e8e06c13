"""The FLUX.1 autoencoder: pictures into latents of an eighth of their side, and back.

Shape letters: B batch, C channels, H and W height and width (of pictures in pixels, of latents
in cells). Parameter names are those of the published `ae.safetensors`.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

GROUPS, EPS = 32, 1e-6
SCALE, SHIFT = 0.3611, 0.1159  # published with the weights


@dataclass(frozen=True)
class VaeSpec:
    """Widths by level, finest first; the defaults are FLUX.1's."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 16
    encoder_blocks: int = 2
    decoder_blocks: int = 3

    @property
    def factor(self) -> int:
        """Picture pixels to a latent cell's side."""
        side: int = 2 ** (len(self.widths) - 1)
        return side


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPS)


class Pointwise(nn.Conv2d):
    """A 1×1 convolution, as a matrix product.

    On a CPU the convolution's own sums run in another order for another number of threads.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        weight = self.weight[:, :, 0, 0].expand(len(x), -1, -1)
        out = torch.baddbmm(self.bias[:, None], weight, x.flatten(2))
        return out.reshape(len(x), -1, *x.shape[2:])


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), conv3(c_in, c_out)
        self.norm2, self.conv2 = norm(c_out), conv3(c_out, c_out)
        if c_in != c_out:
            self.nin_shortcut = Pointwise(c_in, c_out)
        self.widens = c_in != c_out

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = h + (self.nin_shortcut(x) if self.widens else x)
        return out


class Attention(nn.Module):
    """One head over all cells of the middle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (Pointwise(channels, channels) for _ in "qkvo")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (
            rearrange(f(y), "B C H W -> B 1 (H W) C").contiguous() for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj_out(
            rearrange(y, "B 1 (H W) C -> B C H W", H=x.shape[2], W=x.shape[3])
        )
        return x + out


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom, as published
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, then, unless it is the last, a change of it."""

    def __init__(self, c_in: int, c_out: int, blocks: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(c_in if i == 0 else c_out, c_out) for i in range(blocks)
        )
        match resample:
            case Downsample():
                self.downsample = resample
            case Upsample():
                self.upsample = resample
        self.resamples = resample is not None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.resamples:
            x = (self.downsample if hasattr(self, "downsample") else self.upsample)(x)
        return x


class Encoder(nn.Module):
    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        widths, last = spec.widths, len(spec.widths) - 1
        self.conv_in = conv3(3, widths[0])
        self.down = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                spec.encoder_blocks,
                Downsample(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = conv3(widths[-1], 2 * spec.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mean and log-variance, one behind the other on the channel axis."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        widths, last = spec.widths, len(spec.widths) - 1
        self.conv_in = conv3(spec.latent_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, last)],
                width,
                spec.decoder_blocks,
                Upsample(width) if i > 0 else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[0])
        self.conv_out = conv3(widths[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class AutoEncoder(nn.Module):
    """Pictures in −1…1, (B, 3, H, W), and latents, (B, C, H/8, W/8), scaled for the transformer."""

    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)

    def moments(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, unscaled."""
        mean, logvar = self.encoder(x_BCHW).chunk(2, dim=1)
        return mean, logvar

    def scaled_moments(self, x_BCHW: Tensor) -> Tensor:
        """Mean and log-variance, one behind the other, as the transformer would see a draw."""
        mean, logvar = self.moments(x_BCHW)
        return torch.cat([(mean - SHIFT) * SCALE, logvar + 2 * math.log(SCALE)], dim=1)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """The posterior's mean; nothing is drawn."""
        return (self.moments(x_BCHW)[0] - SHIFT) * SCALE

    def decode(self, z_BCHW: Tensor) -> Tensor:
        x: Tensor = self.decoder(z_BCHW / SCALE + SHIFT)
        return x
