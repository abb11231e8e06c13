"""Denoisers on the same random weights: ours as it holds them, and two peers in their ways."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_flux import SPECS, Ask
from flux_engine.models.dit import FluxTransformer
from flux_engine.sampling.kernels import attention
from flux_engine.vram.card import Card
from flux_engine.vram.planner import Stage
from flux_engine.vram.residency import Residency

Step = Callable[[], Tensor]  # one forward pass; the velocity

IMAGE_STEPS = 28  # of the picture that a transfer of all weights is shared by


class AbsentError(Exception):
    """A peer, or a way of its, that is not to be had here; the message says why."""


class Ours:
    """One transformer whose weights are held as each call wants them."""

    def __init__(self, dit: FluxTransformer, card: Card) -> None:
        self.dit, self.card = dit, card
        self.room = Residency({"dit": dit}, card)

    @contextmanager
    def ready(
        self, ask: Ask, steps: int, *, kept: int | None, slots: int = 2, back_end: str = "default"
    ) -> Iterator[Step]:
        """So many blocks stay, doubles first and spread; None: all, and the table's makers."""
        sizes = self.room.sizes()["dit"]
        blocks = [name for name, (kind, _) in sizes.items() if kind == "block"]
        stay = frozenset(sizes) if kept is None else frozenset(spread(blocks, kept))
        rotation = self.dit.rotation(ask.ids_LA)
        with ExitStack() as stack:
            stack.enter_context(self.room.phase(Stage(resident={"dit": stay}, slots=slots)))
            with self.room.loop("dit", 1, "table"):
                c = self.dit.condition(ask.sigma_B, ask.pooled_BP, ask.guidance_B)
                rows = self.dit.modulate(c)
            stack.enter_context(self.room.loop("dit", steps))
            stack.enter_context(attention(back_end))
            yield lambda: self.dit(ask.x_BSC, ask.text_BTW, rows, rotation)


def spread(blocks: list[str], count: int) -> list[str]:
    doubles = [name for name in blocks if name.startswith("double")]
    singles = [name for name in blocks if name not in doubles]
    first = min(count, len(doubles))
    rest = count - first
    return [doubles[i * len(doubles) // first] for i in range(first)] + [
        singles[i * len(singles) // rest] for i in range(rest)
    ]


@contextmanager
def diffusers_step(
    dit: FluxTransformer, spec: str, ask: Ask, way: str, device: torch.device
) -> Iterator[Step]:
    """`eager`, `compiled`, `group block`, `group leaf`, `sequential`; `model` is timed by parts."""
    if importlib.util.find_spec("diffusers") is None:
        raise AbsentError("diffusers is not installed")
    if device.type == "cpu" and way != "eager":
        raise AbsentError(f"{way} needs a card")
    model = diffusers_model(dit, spec)
    if way in ("eager", "compiled", "model"):
        model.to(device)
    if way == "compiled":
        model.compile_repeated_blocks(fullgraph=True)
    if way.startswith("group"):
        from diffusers.hooks import apply_group_offloading

        kind = {"group block": "block_level", "group leaf": "leaf_level"}[way]
        more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        apply_group_offloading(
            model,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type=kind,
            use_stream=True,
            record_stream=True,
            non_blocking=True,
            **more,
        )
    if way == "sequential":
        if importlib.util.find_spec("accelerate") is None:
            raise AbsentError("accelerate is not installed")
        from accelerate import cpu_offload

        cpu_offload(model, execution_device=device)
    texts = ask.text_BTW.shape[1]
    ids = ask.ids_LA.to(ask.x_BSC.dtype)

    def step() -> Tensor:
        out: Tensor = model(
            hidden_states=ask.x_BSC,
            encoder_hidden_states=ask.text_BTW,
            pooled_projections=ask.pooled_BP,
            timestep=ask.sigma_B.to(ask.x_BSC.dtype),
            img_ids=ids[texts:],
            txt_ids=ids[:texts],
            guidance=ask.guidance_B,
            return_dict=False,
        )[0]
        return out

    yield step


def diffusers_model(dit: FluxTransformer, spec: str) -> Any:
    from diffusers import FluxTransformer2DModel

    from tests.parity import diffusers_layout

    flux = SPECS[spec]
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=flux.channels_in,
            num_layers=flux.double_blocks,
            num_single_layers=flux.single_blocks,
            attention_head_dim=flux.width // flux.heads,
            num_attention_heads=flux.heads,
            joint_attention_dim=flux.text_width,
            pooled_projection_dim=flux.pooled_width,
            guidance_embeds=flux.guidance,
            axes_dims_rope=flux.axes,
        )
    weights = {name: parameter.data for name, parameter in dit.named_parameters()}
    model.load_state_dict(diffusers_layout.transformer(weights), assign=True)
    return model.eval().requires_grad_(False)


def transfer_seconds(dit: FluxTransformer, spec: str, device: torch.device) -> float:
    """Of what whole-model offloading does once a picture: all weights in, and out again."""
    if importlib.util.find_spec("diffusers") is None:
        raise AbsentError("diffusers is not installed")
    if device.type == "cpu":
        raise AbsentError("model offload needs a card")
    model = diffusers_model(dit, spec)
    began = time.monotonic()
    model.to(device)
    model.to("cpu")  # which waits for all of it
    return time.monotonic() - began


@contextmanager
def diffsynth_step(
    dit: FluxTransformer, spec: str, ask: Ask, limit: float | None, device: torch.device
) -> Iterator[Step]:
    """Eager with all weights there (None), or its published low-memory recipe with `vram_limit`."""
    if limit is not None and device.type == "cpu":
        raise AbsentError("vram_limit needs a card")
    if ask.rows > 1:
        raise AbsentError("DiffSynth has no batches")
    operators = open_diffsynth()
    model, forward = diffsynth_model(dit, spec)
    if limit is None:
        model.to(device)
    else:
        model = managed(model, limit, device, ask.x_BSC.dtype)
    height = width = ask.side // 8
    latents = unpatched(ask.x_BSC, height, width)

    def step() -> Tensor:
        out: Tensor = forward(
            dit=model,
            latents=latents,
            timestep=1000 * ask.sigma_B.to(latents.dtype),
            prompt_emb=ask.text_BTW,
            pooled_prompt_emb=ask.pooled_BP,
            guidance=ask.guidance_B.to(latents.dtype),
            text_ids=torch.zeros(1, ask.text_BTW.shape[1], 3, device=device, dtype=latents.dtype),
            image_ids=model.prepare_image_ids(latents),
        )
        return patched(out)

    yield step
    del operators


def open_diffsynth() -> torch.library.Library | None:
    """Let it be imported from the folder where it lies; what is answered is to be held meanwhile.
    AbsentError if there is none. It asks for ModelScope's downloads, of which none is made here."""
    from tests.parity.diffsynth_oracle import LIBRARY, declare_torchvision_operators

    if importlib.util.find_spec("diffsynth") is None and not LIBRARY.is_dir():
        raise AbsentError("diffsynth is not installed")
    if LIBRARY.is_dir() and str(LIBRARY) not in sys.path:
        sys.path.append(str(LIBRARY))
    if importlib.util.find_spec("modelscope") is None:
        stub = ModuleType("modelscope")
        stub.snapshot_download = no_download  # type: ignore[attr-defined]
        sys.modules["modelscope"] = stub
    return declare_torchvision_operators()


def no_download(*_: object, **__: object) -> None:
    raise AbsentError("modelscope is not installed")


def diffsynth_model(dit: FluxTransformer, spec: str) -> tuple[Any, Any]:
    from types import SimpleNamespace

    from diffsynth.pipelines.flux_image import model_fn_flux_image
    from diffsynth.utils.state_dict_converters.flux_dit import FluxDiTStateDictConverter

    from tests.parity.diffsynth_models import build_transformer

    with torch.device("meta"):
        model = build_transformer(SimpleNamespace(flux=SPECS[spec]))  # type: ignore[arg-type]
    weights = {name: parameter.data for name, parameter in dit.named_parameters()}
    model.load_state_dict(FluxDiTStateDictConverter(weights), assign=True)
    return model.eval().requires_grad_(False), model_fn_flux_image


def managed(model: Any, limit: float, device: torch.device, dtype: torch.dtype) -> Any:
    """Its states: eight bits on the host until there is room, eight bits on the card after."""
    from diffsynth.core.vram.layers import (
        AutoWrappedLinear,
        AutoWrappedModule,
        enable_vram_management,
    )
    from diffsynth.models.flux_dit import RMSNorm

    eight = torch.float8_e4m3fn
    states = {"offload": (eight, "cpu"), "onload": (eight, "cpu"), "preparing": (eight, device),
              "computation": (dtype, device)}  # fmt: skip
    config: dict[str, Any] = {}
    for state, (kind, place) in states.items():
        config |= {f"{state}_dtype": kind, f"{state}_device": str(place)}
    model = model.to(eight)
    maps = {torch.nn.Linear: AutoWrappedLinear, RMSNorm: AutoWrappedModule}
    model = enable_vram_management(model, maps, vram_config=config, vram_limit=limit)
    for module in model.modules():
        if hasattr(module, "onload"):
            module.onload()
    return model


def unpatched(x_BSC: Tensor, height: int, width: int) -> Tensor:
    from flux_engine.latents import unpack

    return unpack(x_BSC, height, width)


def patched(z_BZHW: Tensor) -> Tensor:
    from flux_engine.latents import pack

    return pack(z_BZHW)
