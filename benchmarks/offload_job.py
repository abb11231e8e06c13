"""A whole job, from prompts to pixels, on a card of which only so much may be used."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_flux import SPECS, TEXT_TOKENS, empty, fill
from flux_engine.batching import Batching
from flux_engine.encode import TextEncoder, TextModels, layout_for
from flux_engine.engine import FluxEngine
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
from flux_engine.request import Generation, GenerationRequest
from flux_engine.vram.card import Card, CudaCard
from flux_engine.vram.estimates import GIB, RESERVE, Machine
from flux_engine.vram.rates import measured
from tests.parity import tiny_tokenizers

CAPS = {"full": (None, 24.0, 12.0, 8.0), "tiny": (None, 0.42, 0.4)}  # GiB
ROWS, STEPS = 8, {"full": 28, "tiny": 4}
WARM_STEPS = 2
MICRO_BATCH = {
    "full": 8,
    "tiny": 4,
}  # the same within each cap, which then costs copies and no bits
SIDE = {"full": 1024, "tiny": 128}
SMALL_TEXT = {"clip": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
                       "num_hidden_layers": 3, "vocab_size": tiny_tokenizers.CLIP_VOCAB,
                       "eos_token_id": tiny_tokenizers.CLIP_VOCAB - 1},
              "t5": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 4,
                     "vocab_size": tiny_tokenizers.T5_VOCAB}}  # fmt: skip


class WholeJob:
    """Eight pictures of one engine, again and again, within so much of the card's memory."""

    def __init__(self, spec: str, device: torch.device, dit: FluxTransformer, card: Card) -> None:
        """The card serves all jobs: pages are locked as long as it is there."""
        self.spec, self.device, self.card = spec, device, card
        self.engine = whole(spec, device, dit)
        self.machine = Machine(name="the host", memory=0, link=1e9, matmul=1e10, attention=1e10)
        if isinstance(card, CudaCard):
            self.machine = measured(card, self.engine.dtype, 0)
        self.before: Tensor | None = None

    def within(self, gib: float | None) -> dict[str, Any]:
        """Seconds a picture, once a short job has been through. OutOfMemoryError or SettingError
        if it is too little."""
        self.engine.residency.leave()  # the weights of the job before
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        machine = replace(self.machine, memory=self._limited(gib))
        self.engine.hold(*held(
            self.engine.models, self.engine.batching, self.card, machine,
            dtype=self.engine.dtype, images=self.engine.residency.images or None,
        ))  # fmt: skip
        self._made(WARM_STEPS)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        copied, waits, began = self.card.copied, self.card.host_waits, time.monotonic()
        made = self._made(STEPS[self.spec])
        seconds = (time.monotonic() - began) / ROWS
        told = {"seconds": seconds, "seconds_a_row": seconds, "micro_batch": made[0].micro_batch,
                "copied_gb": (self.card.copied - copied) / 1e9,
                "host_waits": self.card.host_waits - waits}  # fmt: skip
        if self.device.type == "cuda":
            told["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        latents = torch.stack([one.latents for one in made])
        if self.before is not None:
            told["same_bits"] = torch.equal(latents, self.before)
        self.before = latents if self.before is None else self.before
        return told

    def _limited(self, gib: float | None) -> int:
        """Bytes for the plan; on a GPU no more than the cap is to be had from then on."""
        if self.device.type == "cpu":
            return int(gib * GIB) if gib else 2**40
        free, total = torch.cuda.mem_get_info(self.device)
        share = min(1.0, (gib * GIB if gib else total) / total)
        torch.cuda.set_per_process_memory_fraction(share, self.device)
        return int(min(gib * GIB - RESERVE / 2, free) if gib else free - RESERVE / 2)

    def _made(self, steps: int) -> list[Generation]:
        text = self.engine.text  # a new one, which remembers no prompt
        self.engine.text = TextEncoder(text.models, self.device, text.batch)
        self.engine.text.loop = text.loop
        side = SIDE[self.spec]
        return self.engine.generate([
            GenerationRequest(
                prompt=f"picture {i}", seed=i, height=side, width=side,
                num_inference_steps=steps, t5_sequence_length=TEXT_TOKENS[self.spec],
            )
            for i in range(ROWS)
        ])  # fmt: skip


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
    vae.to(memory_format=layout_for(device))  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory(prefix="tokenizers-") as name:
        folder = Path(name)
        tiny_tokenizers.write_clip(folder / "clip")
        tiny_tokenizers.write_t5(folder / "t5")
        text = TextModels(clip, load_tokenizer(folder / "clip"), t5, load_tokenizer(folder / "t5"))
    assert (flux.pooled_width, flux.text_width) == (
        clip.config.hidden_size,  # type: ignore[union-attr]
        t5.config.d_model,  # type: ignore[union-attr]
    )
    return FluxEngine(
        dit=dit, vae=vae, text=text, device=device, dtype=dtype,
        batching=Batching(micro=MICRO_BATCH[spec]),
        timestep_shift=True,
    )  # fmt: skip
