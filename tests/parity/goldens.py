"""Golden files: what an oracle answered, one file per case, versions in the header.

A file holds `latents` (4, 16, H/8, W/8), a row each, and for cases of four steps `pixels`, the
first row's picture (3, H, W); all in float32.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flux_engine.request import GenerationRequest
from tests.parity.cases import Case

FOLDER = Path(__file__).parent / "golden"
LIBRARIES = ("torch", "transformers", "tokenizers")

Generate = Callable[[GenerationRequest], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Golden:
    """What is in one file."""

    latents: Tensor
    pixels: Tensor | None
    versions: dict[str, str]


def answer(case: Case, generate: Generate, oracle: str) -> Golden:
    """Each row on its own through `generate`; `oracle` is the distribution it comes from."""
    rows = [generate(request) for request in case.requests]
    return Golden(
        latents=torch.stack([latents for latents, _ in rows]),
        pixels=rows[0][1] if case.pictured else None,
        versions={name: version(name) for name in (oracle, *LIBRARIES)},
    )


def write(golden: Golden, name: str, folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": golden.latents.contiguous()}
    if golden.pixels is not None:
        tensors["pixels"] = golden.pixels.contiguous()
    header = {"versions": json.dumps(golden.versions, sort_keys=True)}
    save_file(tensors, folder / f"{name}.safetensors", metadata=header)


def read(name: str, folder: Path = FOLDER) -> Golden:
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        return Golden(
            latents=file.get_tensor("latents"),
            pixels=file.get_tensor("pixels") if "pixels" in file.keys() else None,  # noqa: SIM118
            versions=json.loads(file.metadata()["versions"]),
        )
