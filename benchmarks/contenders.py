"""Who is timed: our engine, diffusers and DiffSynth-Studio, each behind the same call.

All answer latents (B, 16, H/8, W/8), scaled for the transformer, and unclamped pixels
(B, 3, H, W), in float32. `parts` are modules that each of them has, for counting: the
transformer's first and the modulation's last projection, and both text encoders.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from flux_engine import load_engine
from flux_engine.request import GenerationRequest, Schedule
from tests.parity.diffsynth_oracle import LIBRARY, declare_torchvision_operators
from tests.parity.tiny import SCALE, SHIFT, TinySpec

OURS = "ours"

Answer = tuple[Tensor, Tensor]


class Contender(Protocol):
    """One implementation with its weights loaded."""

    parts: dict[str, nn.Module]
    versions: dict[str, str]

    def generate(self, requests: Sequence[GenerationRequest]) -> Answer: ...


@dataclass(frozen=True)
class Entry:
    """A contender that is not loaded yet: whose, how many rows at once, on which noise levels."""

    library: str
    batch: int
    schedules: tuple[Schedule, ...]

    @property
    def name(self) -> str:
        return f"{self.library} ×{self.batch}"

    @property
    def ours(self) -> bool:
        return self.library == OURS

    @property
    def installed(self) -> bool:
        return self.library != "diffsynth" or LIBRARY.is_dir()

    def load(self, folder: Path, spec: TinySpec) -> Contender:
        match self.library:
            case "ours":
                return Ours(folder, self.batch)
            case "diffusers":
                return Diffusers(folder, spec, self.batch)
            case "diffsynth":
                return DiffSynth(folder, spec)
            case other:
                raise ValueError(f"{other!r} is no contender")


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(OURS, 1, ("flux", "diffsynth")),
        Entry(OURS, 4, ("flux", "diffsynth")),
        Entry("diffusers", 1, ("flux",)),
        Entry("diffusers", 4, ("flux",)),
        Entry("diffsynth", 1, ("diffsynth",)),  # its pipeline has no batches
    )
}


class Ours:
    """Every stage in batches of `batch`, so that no batch of a round is filled up."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.engine = load_engine(
            folder, torch_dtype=torch.float32, device="cpu",
            text_batch=batch, micro_batch=batch, decode_batch=batch,
        )  # fmt: skip
        dit, text = self.engine.dit, self.engine.text.models
        self.parts: dict[str, nn.Module] = {
            "transformer": dit.img_in,
            "modulation": dit.final_layer.adaLN_modulation,
            "t5": text.t5,
            "clip": text.clip,
        }
        self.versions: dict[str, str] = {}

    def generate(self, requests: Sequence[GenerationRequest]) -> Answer:
        made = self.engine.generate(requests)
        pixels = [m.pixels for m in made if m.pixels is not None]
        return torch.stack([m.latents for m in made]), torch.stack(pixels)


class Diffusers:
    """Its pipeline up to the latents, then its decoder, `batch` requests a call."""

    def __init__(self, folder: Path, spec: TinySpec, batch: int) -> None:
        from diffusers import FluxPipeline

        from tests.parity.diffusers_oracle import DiffusersOracle

        oracle = DiffusersOracle(folder, spec)
        self.pipe = FluxPipeline(**oracle.parts, scheduler=oracle.scheduler)
        self.pipe.set_progress_bar_config(disable=True)
        self.batch = batch
        self.parts: dict[str, nn.Module] = {
            "transformer": self.pipe.transformer.x_embedder,
            "modulation": self.pipe.transformer.norm_out.linear,
            "t5": self.pipe.text_encoder_2,
            "clip": self.pipe.text_encoder,
        }
        self.versions = {"diffusers": version("diffusers")}

    def generate(self, requests: Sequence[GenerationRequest]) -> Answer:
        groups = [requests[i : i + self.batch] for i in range(0, len(requests), self.batch)]
        latents, pixels = zip(*map(self._together, groups), strict=True)
        return torch.cat(latents), torch.cat(pixels)

    @torch.inference_mode()
    def _together(self, requests: Sequence[GenerationRequest]) -> Answer:
        first = requests[0]
        packed = self.pipe(
            prompt=[r.prompt for r in requests],
            height=first.height,
            width=first.width,
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.embedded_guidance,
            max_sequence_length=first.t5_sequence_length,
            generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
            output_type="latent",
        ).images
        latents = self.pipe._unpack_latents(packed, first.height, first.width, 8)
        return latents, self.pipe.vae.decode(latents / SCALE + SHIFT, return_dict=False)[0]


class DiffSynth:
    """Its pipeline without the change to 8-bit levels; to be loaded in a process of its own."""

    def __init__(self, folder: Path, spec: TinySpec) -> None:
        sys.path.append(str(LIBRARY))
        self.operators = declare_torchvision_operators()
        from tests.parity.diffsynth_models import DiffSynthOracle

        self.oracle = DiffSynthOracle(folder, spec)
        pipe = self.oracle.pipe
        self.parts: dict[str, nn.Module] = {
            "transformer": pipe.dit.x_embedder,
            "modulation": pipe.dit.final_norm_out.linear,
            "t5": pipe.text_encoder_2,
            "clip": pipe.text_encoder_1,
        }
        self.versions = {"diffsynth": version("diffsynth")}

    def generate(self, requests: Sequence[GenerationRequest]) -> Answer:
        latents, pixels = zip(*map(self.oracle.generate, requests), strict=True)
        return torch.stack(latents), torch.stack(pixels)
