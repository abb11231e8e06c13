"""The two kinds of transformer block, and what they are made of.

Shape letters: B batch, L tokens (T text, S image), D hidden width, H heads, E head width,
M modulation vectors. A block never computes its modulation: it is handed its rows of the
table (`dit.FluxTransformer.modulate`), so its modulation weights are not needed in the loop.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from flux_engine.models.rope import rotate

EPS = 1e-6


class Modulation(nn.Module):
    """One vector of conditions into `count` vectors of shift, scale and gate."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, count * width)
        self.count = count

    def forward(self, c_BD: Tensor) -> Tensor:
        rows: Tensor = rearrange(self.lin(F.silu(c_BD)), "B (M D) -> B M D", M=self.count)
        return rows


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; its weight is published as `scale`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # wider than its input while it learns; there is no fused norm of two types
        return F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype), EPS)


class QKNorm(nn.Module):
    """Norms of queries and keys, over the head width."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_width)
        self.key_norm = RMSNorm(head_width)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class StreamAttention(nn.Module):
    """One stream's projections into and out of the attention that both streams share."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = QKNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def project(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, L, E) each, queries and keys normed."""
        q, k, v = rearrange(self.qkv(x_BLD), "B L (n H E) -> n B H L E", n=3, H=self.heads)
        return *self.norm(q, k), v


def layer_norm(x_BLD: Tensor) -> Tensor:
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=EPS)


def modulated(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    return (1 + scale_BD[:, None]) * layer_norm(x_BLD) + shift_BD[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, rotation_2LR: Tensor) -> Tensor:
    """Attention of all tokens to all tokens: (B, H, L, E) three times into (B, L, D)."""
    out = F.scaled_dot_product_attention(rotate(q, rotation_2LR), rotate(k, rotation_2LR), v)
    return rearrange(out, "B H L E -> B L (H E)")


def mlp(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width))


class DoubleBlock(nn.Module):
    """Text and image keep weights of their own and meet in one attention."""

    MODULATIONS = 12  # shift, scale, gate for attention and MLP, of image, then of text

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.img_mod = Modulation(width, 6)
        self.img_attn = StreamAttention(width, heads)
        self.img_mlp = mlp(width, inner)
        self.txt_mod = Modulation(width, 6)
        self.txt_attn = StreamAttention(width, heads)
        self.txt_mlp = mlp(width, inner)

    def modulate(self, c_BD: Tensor) -> Tensor:
        """This block's rows of the table, (B, 12, D)."""
        return torch.cat([self.img_mod(c_BD), self.txt_mod(c_BD)], dim=1)

    def forward(
        self, img_BSD: Tensor, txt_BTD: Tensor, rows_BMD: Tensor, rotation_2LR: Tensor
    ) -> tuple[Tensor, Tensor]:
        img, txt = rows_BMD[:, :6].unbind(1), rows_BMD[:, 6:].unbind(1)
        q_i, k_i, v_i = self.img_attn.project(modulated(img_BSD, img[0], img[1]))
        q_t, k_t, v_t = self.txt_attn.project(modulated(txt_BTD, txt[0], txt[1]))
        seen = attend(
            torch.cat([q_t, q_i], 2), torch.cat([k_t, k_i], 2), torch.cat([v_t, v_i], 2),
            rotation_2LR,
        )  # fmt: skip
        T = txt_BTD.shape[1]
        img_BSD = img_BSD + img[2][:, None] * self.img_attn.proj(seen[:, T:])
        img_BSD = img_BSD + img[5][:, None] * self.img_mlp(modulated(img_BSD, img[3], img[4]))
        txt_BTD = txt_BTD + txt[2][:, None] * self.txt_attn.proj(seen[:, :T])
        txt_BTD = txt_BTD + txt[5][:, None] * self.txt_mlp(modulated(txt_BTD, txt[3], txt[4]))
        return img_BSD, txt_BTD


class SingleBlock(nn.Module):
    """Text and image as one sequence; attention and MLP side by side."""

    MODULATIONS = 3

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.width, self.inner = heads, width, inner
        self.linear1 = nn.Linear(width, 3 * width + inner)
        self.linear2 = nn.Linear(width + inner, width)
        self.norm = QKNorm(width // heads)
        self.modulation = Modulation(width, self.MODULATIONS)

    def modulate(self, c_BD: Tensor) -> Tensor:
        """This block's rows of the table, (B, 3, D)."""
        rows: Tensor = self.modulation(c_BD)
        return rows

    def forward(self, x_BLD: Tensor, rows_BMD: Tensor, rotation_2LR: Tensor) -> Tensor:
        shift, scale, gate = rows_BMD.unbind(1)
        both = self.linear1(modulated(x_BLD, shift, scale))
        qkv, hidden = both.split([3 * self.width, self.inner], dim=-1)
        q, k, v = rearrange(qkv, "B L (n H E) -> n B H L E", n=3, H=self.heads)
        q, k = self.norm(q, k)
        seen = attend(q, k, v, rotation_2LR)
        del q, k, v
        out = self._joined(both, seen, hidden)
        return x_BLD + gate[:, None] * out

    def _joined(self, both_BLJ: Tensor, seen_BLD: Tensor, hidden_BLI: Tensor) -> Tensor:
        """Attention's answer and the MLP's hidden values, side by side, through `linear2`."""
        if torch.is_grad_enabled():
            wide = torch.cat([seen_BLD, F.gelu(hidden_BLI, approximate="tanh")], dim=-1)
            out: Tensor = self.linear2(wide)
            return out
        # the values lie beside the hidden ones and are used up: the answer takes their place, and
        # nine more widths of memory are never asked for
        both_BLJ[..., 2 * self.width : 3 * self.width] = seen_BLD
        torch.ops.aten.gelu_(hidden_BLI, approximate="tanh")
        wide = both_BLJ[..., 2 * self.width :].flatten(0, 1)
        return self.linear2(wide).unflatten(0, both_BLJ.shape[:2])  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    """Tokens back into latent patches."""

    MODULATIONS = 2

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def modulate(self, c_BD: Tensor) -> Tensor:
        """This layer's rows of the table, (B, 2, D): shift, then scale."""
        rows: Tensor = rearrange(
            self.adaLN_modulation(c_BD), "B (M D) -> B M D", M=self.MODULATIONS
        )
        return rows

    def forward(self, x_BSD: Tensor, rows_BMD: Tensor) -> Tensor:
        shift, scale = rows_BMD.unbind(1)
        out: Tensor = self.linear(modulated(x_BSD, shift, scale))
        return out
