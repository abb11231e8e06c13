"""What the demo model's transformer is before it has learned anything."""

import torch
from torch import nn

from flux_engine.models.dit import FluxTransformer
from shapes.recipe import Recipe

ZERO = ("lin.weight", "adaLN_modulation.1.weight", "final_layer.linear.weight")


def untaught(recipe: Recipe, seed: int) -> FluxTransformer:
    """Without embedded guidance. Every block starts as the identity, and the velocity at zero."""
    torch.manual_seed(seed)
    net = FluxTransformer(recipe.unguided)
    initialise(net)
    return net


def with_guidance(net: FluxTransformer, recipe: Recipe, seed: int) -> FluxTransformer:
    """The same transformer with an embedder of guidance that says nothing yet."""
    torch.manual_seed(seed)
    guided = FluxTransformer(recipe.transformer)
    initialise(guided)
    guided.load_state_dict(net.state_dict(), strict=False)  # it has no guidance embedder
    return guided


def initialise(net: FluxTransformer) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in net.named_parameters():
        if name.endswith(ZERO):
            nn.init.zeros_(parameter)
    if net.guidance_in is not None:
        nn.init.zeros_(net.guidance_in.out_layer.weight)
