"""What a transformer answers that has learned nothing, and one that gets an embedder."""

import torch

from flux_engine.latents import position_ids
from flux_engine.models.dit import FluxTransformer
from shapes.initial import untaught, with_guidance
from shapes.recipe import ONE

SPEC = ONE.transformer


def answer(net: FluxTransformer, guidance: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x, text = (torch.randn(2, n, 64, generator=random) for n in (ONE.grid**2, ONE.text_length))
    pooled = torch.randn(2, SPEC.pooled_width, generator=random)
    rows = net.modulate(net.condition(torch.full((2,), 0.5), pooled, torch.full((2,), guidance)))
    side = 2 * ONE.grid
    rotation = net.rotation(position_ids(ONE.text_length, side, side))
    velocity: torch.Tensor = net(x, text, rows, rotation)
    return velocity


@torch.no_grad()
def test_the_velocity_starts_at_zero_and_is_a_function_of_the_seed() -> None:
    net = untaught(ONE, 0)
    assert net.guidance_in is None
    assert answer(net, 1.0).abs().max() == 0
    again, other = untaught(ONE, 0), untaught(ONE, 1)
    assert torch.equal(net.img_in.weight, again.img_in.weight)
    assert not torch.equal(net.img_in.weight, other.img_in.weight)


@torch.no_grad()
def test_guidance_changes_no_answer_at_first() -> None:
    net = untaught(ONE, 0)
    torch.nn.init.normal_(net.final_layer.linear.weight, std=0.1)
    guided = with_guidance(net, ONE, 0)
    assert guided.guidance_in is not None
    torch.testing.assert_close(answer(guided, 1.0), answer(net, 1.0))
    torch.testing.assert_close(answer(guided, 5.0), answer(net, 1.0))
    assert answer(net, 1.0).abs().max() > 0.01
