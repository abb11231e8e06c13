"""A model folder in the layout of the FLUX.1-dev repository, written and read."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from shapes.autoencoder import SPEC as VAE_SPEC
from shapes.flow import SPEC, UNGUIDED
from shapes.text import SEQUENCE_LENGTH, write_text
from shapes.world import SIDE

TRANSFORMER, AUTOENCODER, SAMPLING = "flux1-shapes.safetensors", "ae.safetensors", "sampling.json"
STEPS, GUIDANCE, SHIFT = 16, 2.0, 1.5
DEFAULTS = {
    "height": SIDE,
    "width": SIDE,
    "num_inference_steps": STEPS,
    "embedded_guidance": GUIDANCE,
    "t5_sequence_length": SEQUENCE_LENGTH,
    "sigma_shift": SHIFT,
}


def write_weights(net: nn.Module, path: Path) -> None:
    """The state dict in bfloat16, whole or not at all."""
    state = {
        k: v.detach().cpu().to(torch.bfloat16).contiguous() for k, v in net.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes for the owner alone
    partial.rename(path)


def begin(folder: Path, vae: AutoEncoder, seed: int) -> None:
    """Everything but the transformer."""
    write_text(folder, seed)
    write_weights(vae, folder / AUTOENCODER)


def finish(folder: Path, net: FluxTransformer, source: Path | None = None) -> None:
    """The transformer and the sampling defaults; `source` is the folder that has the rest."""
    if source is not None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / SAMPLING).write_text(json.dumps(DEFAULTS, indent=2) + "\n")
    write_weights(net, folder / TRANSFORMER)


def load_autoencoder(folder: Path) -> AutoEncoder:
    """In float32, frozen."""
    vae = AutoEncoder(VAE_SPEC)
    vae.load_state_dict(load_file(folder / AUTOENCODER))
    return vae.float().eval().requires_grad_(False)


def load_transformer(folder: Path) -> FluxTransformer:
    """In float32; whether it has embedded guidance is read off its keys."""
    state = load_file(folder / TRANSFORMER)
    guided = any(key.startswith("guidance_in.") for key in state)
    net = FluxTransformer(SPEC if guided else UNGUIDED)
    net.load_state_dict(state)
    return net.float().eval()
