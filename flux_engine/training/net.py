"""The transformer while it learns: asked in latents, at the precision and memory that training has.

Shape letters: B batch, Z latent channels, H and W latent cells, S image tokens, C patch channels,
T text tokens, W text width, P pooled width.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from flux_engine.errors import SettingError
from flux_engine.holding import open_bits, settle_bits
from flux_engine.latents import pack, position_ids, unpack
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.fp8 import narrow_in

Checkpointing = Literal["none", "blocks", "offload"]


class Trained(Protocol):
    """What is trained on a transformer."""

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Every parameter that an optimizer moves, by name."""

    def off(self) -> AbstractContextManager[None]:
        """Inside, the transformer computes as if nothing had been trained."""


class Net(nn.Module):
    """A transformer and what is trained on it.

    Weights in float32 compute in float32, or in bfloat16 under autocast if `compute` says so;
    weights in bfloat16 compute as they do in the engine. With `checkpointing` a block keeps only
    what goes into it, on the device (`blocks`) or on the host (`offload`), and is computed again
    on the way back.
    """

    def __init__(
        self,
        dit: FluxTransformer,
        trained: Trained,
        *,
        compute: torch.dtype = torch.float32,
        checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        if any(layer.products for _, layer in narrow_in(dit)):
            raise SettingError("products of eight bits have no gradient: weights alone can be fp8")
        self.dit, self.trained = dit, trained
        self.compute, self.autocast = compute, needs_autocast(dit, compute)
        self._rotations: dict[tuple[int, int, int], Tensor] = {}
        if checkpointing != "none":
            for block in (*dit.double_blocks, *dit.single_blocks):
                recompute(block, on_host=checkpointing == "offload")

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.trained.trainable)

    @property
    def device(self) -> torch.device:
        return self.dit.img_in.weight.device

    def forward(
        self,
        x_BZHW: Tensor,
        sigma_B: Tensor,
        t5_BTW: Tensor,
        pooled_BP: Tensor,
        guidance_B: Tensor,
    ) -> Tensor:
        """The velocity, (B, Z, H, W) in float32."""
        height, width = x_BZHW.shape[-2:]
        rotation = self._rotation(t5_BTW.shape[1], height, width)
        with self._computing():
            rows_BMD = self.dit.modulate(
                self.dit.condition(sigma_B, pooled_BP.to(self.compute), guidance_B)
            )
            velocity_BSC = self.dit(
                pack(x_BZHW).to(self.compute), t5_BTW.to(self.compute), rows_BMD, rotation
            )
        return unpack(velocity_BSC.float(), height, width)

    @torch.no_grad()
    def bare(
        self,
        x_BZHW: Tensor,
        sigma_B: Tensor,
        t5_BTW: Tensor,
        pooled_BP: Tensor,
        guidance_B: Tensor,
    ) -> Tensor:
        """The same of the transformer without what is trained."""
        with self.trained.off():
            return self(x_BZHW, sigma_B, t5_BTW, pooled_BP, guidance_B)  # type: ignore[no-any-return]

    def _rotation(self, text: int, height: int, width: int) -> Tensor:
        size = text, height, width
        if size not in self._rotations:
            angles = self.dit.rotation(position_ids(text, height, width))
            self._rotations[size] = angles.to(self.device)
        return self._rotations[size]

    def _computing(self) -> AbstractContextManager[Any]:
        if not self.autocast:
            return nullcontext()
        # each weight is used once, so a cache would only keep a second copy of all of them
        return torch.autocast(self.device.type, self.compute, cache_enabled=False)


def needs_autocast(dit: FluxTransformer, compute: torch.dtype) -> bool:
    """Whether weights are wider than what is computed in; SettingError if they are narrower."""
    if compute not in (torch.float32, torch.bfloat16):
        raise SettingError(f"compute is {compute}: allowed are float32 and bfloat16")
    kinds = {p.dtype for p in dit.parameters() if p.is_floating_point()}
    if kinds == {compute}:
        return False
    if compute == torch.bfloat16 and kinds <= {torch.float32, torch.bfloat16}:
        return True
    has = ", ".join(sorted(map(str, kinds)))
    raise SettingError(f"compute is {compute}, and the transformer's weights are {has}")


def narrow_base(dit: FluxTransformer) -> None:
    """Let the blocks' frozen weights keep eight bits; they compute as they did, from those."""
    open_bits(dit, products=False)
    settle_bits(dit)


def recompute(block: nn.Module, *, on_host: bool) -> None:
    """Let a block keep only its inputs for the way back."""
    plain = block.forward

    def forward(*inputs: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs)
        pinned = inputs[0].is_cuda
        with save_on_cpu(pin_memory=pinned) if on_host else nullcontext():
            # nothing is drawn in a block
            return checkpoint(plain, *inputs, use_reentrant=False, preserve_rng_state=False)

    block.__dict__["forward"] = forward
