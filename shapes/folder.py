"""A model folder in the layout of the FLUX.1-dev repository, written and read."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from shapes.recipe import Recipe
from shapes.text import write_text

TRANSFORMER, AUTOENCODER, SAMPLING = "flux1-shapes.safetensors", "ae.safetensors", "sampling.json"


def defaults(recipe: Recipe) -> dict[str, int | float]:
    """How the model wants to be sampled."""
    return {
        "height": recipe.world.side,
        "width": recipe.world.side,
        "num_inference_steps": recipe.steps,
        "embedded_guidance": recipe.guidance,
        "t5_sequence_length": recipe.text_length,
        "sigma_shift": recipe.shift,
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


def begin(folder: Path, recipe: Recipe, vae: AutoEncoder, seed: int) -> None:
    """Everything but the transformer."""
    write_text(folder, recipe, seed)
    write_weights(vae, folder / AUTOENCODER)


def finish(folder: Path, recipe: Recipe, net: FluxTransformer, source: Path | None = None) -> None:
    """The transformer and the sampling defaults; `source` is the folder that has the rest."""
    if source is not None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / SAMPLING).write_text(json.dumps(defaults(recipe), indent=2) + "\n")
    write_weights(net, folder / TRANSFORMER)


def load_autoencoder(folder: Path, recipe: Recipe) -> AutoEncoder:
    """In float32, frozen."""
    vae = AutoEncoder(recipe.autoencoder)
    vae.load_state_dict(load_file(folder / AUTOENCODER))
    return vae.float().eval().requires_grad_(False)


def load_transformer(folder: Path, recipe: Recipe) -> FluxTransformer:
    """In float32; whether it has embedded guidance is read off its keys."""
    (file,) = folder.glob("flux1-*.safetensors")
    state = load_file(file)
    guided = any(key.startswith("guidance_in.") for key in state)
    net = FluxTransformer(recipe.transformer if guided else recipe.unguided)
    net.load_state_dict(state)
    return net.float().eval()
