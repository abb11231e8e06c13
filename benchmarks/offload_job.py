"""A whole job, from prompts to pixels, on a card of which only so much may be used."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_flux import SPECS, TEXT_TOKENS, empty, fill
from flux_engine.batching import Batching
from flux_engine.encode import TextEncoder, TextModels
from flux_engine.engine import FluxEngine
from flux_engine.errors import EngineError
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.text import (
    CLIP_L,
    T5_XXL,
    build_clip,
    build_t5,
    fill_constants,
    load_tokenizer,
)
from flux_engine.models.vae import AutoEncoder, VaeSpec
from flux_engine.planning import held
from flux_engine.request import GenerationRequest
from flux_engine.vram.card import CudaCard, HostCard
from flux_engine.vram.estimates import GIB, RESERVE, Machine
from flux_engine.vram.rates import measured
from tests.parity import tiny_tokenizers

CAPS = {"full": (None, 24.0, 12.0, 8.0), "tiny": (None, 0.6, 0.5)}  # GiB
ROWS, STEPS = 8, {"full": 28, "tiny": 4}
SIDE = {"full": 1024, "tiny": 128}
SMALL_TEXT = {"clip": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
                       "num_hidden_layers": 3, "vocab_size": tiny_tokenizers.CLIP_VOCAB,
                       "eos_token_id": tiny_tokenizers.CLIP_VOCAB - 1},
              "t5": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 4,
                     "vocab_size": tiny_tokenizers.T5_VOCAB}}  # fmt: skip


def caps(spec: str, device: torch.device, dit: FluxTransformer) -> Iterator[dict[str, Any]]:
    """Seconds a picture of a job of eight, by the memory that it may use."""
    engine = whole(spec, device, dit)
    asked = [
        GenerationRequest(
            prompt=f"picture {i}", seed=i, height=SIDE[spec], width=SIDE[spec],
            num_inference_steps=STEPS[spec], t5_sequence_length=TEXT_TOKENS[spec],
        )
        for i in range(ROWS)
    ]  # fmt: skip
    before = None
    for gib in CAPS[spec]:
        told: dict[str, Any] = {"name": f"whole job within {gib or 'all'} GiB", "side": SIDE[spec],
                                "rows": ROWS}  # fmt: skip
        try:
            machine, card = limited(device, gib, engine.dtype)
            engine.residency.leave()
            images = engine.residency.images or None
            how = held(
                engine.models, engine.batching, card, machine, dtype=engine.dtype, images=images
            )
            engine.text = TextEncoder(engine.text.models, device, engine.text.batch)
            engine.hold(*how)
            began = time.monotonic()
            made = engine.generate(asked)
            seconds = (time.monotonic() - began) / ROWS
            told |= {"seconds": seconds, "seconds_a_row": seconds, "copied_gb": card.copied / 1e9,
                     "host_waits": card.host_waits, "micro_batch": made[0].micro_batch}  # fmt: skip
            if device.type == "cuda":
                told["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            latents = torch.stack([one.latents for one in made])
            if before is not None and made[0].micro_batch == before[1]:
                told["same_bits"] = torch.equal(latents, before[0])
            before = before or (latents, made[0].micro_batch)
        except (EngineError, torch.OutOfMemoryError) as fault:
            told["absent"] = str(fault)
        yield told


def limited(
    device: torch.device, gib: float | None, dtype: torch.dtype
) -> tuple[Machine, CudaCard | HostCard]:
    if device.type == "cpu":
        memory = int(gib * GIB) if gib else 2**40
        return Machine(name="the host", memory=memory, link=1e9, matmul=1e10, attention=1e10), (
            HostCard()
        )
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gib * GIB if gib else total) / total))
    torch.cuda.reset_peak_memory_stats()
    memory = int(min(gib * GIB - RESERVE / 2, free) if gib else free)
    card = CudaCard(device)
    return measured(card, dtype, memory), card


def whole(spec: str, device: torch.device, dit: FluxTransformer) -> FluxEngine:
    """An engine of random weights, with toy tokenizers."""
    dtype = dit.img_in.weight.dtype
    flux = SPECS[spec]
    with torch.device("meta"):
        shells = (
            AutoEncoder(VaeSpec() if spec == "full" else VaeSpec(widths=(32, 32, 64, 64))),
            build_clip({**CLIP_L, **(SMALL_TEXT["clip"] if spec == "tiny" else {})}),
            build_t5({**T5_XXL, **(SMALL_TEXT["t5"] if spec == "tiny" else {})}),
        )
    vae, clip, t5 = (empty(shell, dtype) for shell in shells)
    assert isinstance(vae, AutoEncoder)
    for model in (vae, clip, t5):
        fill(model.named_parameters(), dtype, device)
    fill_constants(clip, "cpu")
    folder = Path(tempfile.mkdtemp(prefix="tokenizers-"))
    tiny_tokenizers.write_clip(folder / "clip")
    tiny_tokenizers.write_t5(folder / "t5")
    text = TextModels(clip, load_tokenizer(folder / "clip"), t5, load_tokenizer(folder / "t5"))
    assert (flux.pooled_width, flux.text_width) == (
        clip.config.hidden_size,  # type: ignore[union-attr]
        t5.config.d_model,  # type: ignore[union-attr]
    )
    return FluxEngine(
        dit=dit, vae=vae, text=text, device=device, dtype=dtype, batching=Batching(),
        timestep_shift=True,
    )  # fmt: skip
