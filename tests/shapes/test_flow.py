"""Packing, the schedule, and Euler's steps."""

import torch

from flux_engine.models.dit import FluxTransformer
from shapes.flow import (
    ClassifierFree,
    Text,
    Velocity,
    initialise,
    pack,
    positions,
    sample,
    sigmas,
    unpack,
)
from shapes.recipe import ONE
from shapes.recipe import TEXT_WIDTH as WIDTH

SPEC, UNGUIDED, SEQUENCE_LENGTH = ONE.transformer, ONE.unguided, ONE.text_length


def some_text(count: int) -> Text:
    return Text(torch.randn(count, SEQUENCE_LENGTH, WIDTH), torch.randn(count, WIDTH))


def scrambled(net: FluxTransformer) -> FluxTransformer:
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net


def test_unpacking_undoes_packing() -> None:
    z = torch.randn(2, 16, 8, 8)
    assert torch.equal(unpack(pack(z)), z)


def test_a_token_holds_one_patch_channel_by_channel() -> None:
    z = torch.arange(16 * 64).reshape(1, 16, 8, 8)
    assert pack(z)[0, 5, :4].tolist() == [18, 19, 26, 27]  # row 1, column 1 of channel 0


def test_text_stands_at_zero_and_patches_on_their_grid() -> None:
    ids = positions(SEQUENCE_LENGTH, 16)
    assert len(ids) == SEQUENCE_LENGTH + 16
    assert (ids[:SEQUENCE_LENGTH] == 0).all()
    assert ids[SEQUENCE_LENGTH + 6].tolist() == [0, 1, 2]


def test_noise_levels_fall_from_one_to_zero_and_bend_with_the_shift() -> None:
    assert sigmas(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    bent = sigmas(4, 1.5)
    assert bent[0] == 1.0
    assert bent[2] == 0.6
    assert bent[-1] == 0.0


def test_a_fresh_transformer_answers_zero() -> None:
    net = FluxTransformer(SPEC)
    initialise(net)
    x = torch.randn(2, 16, 64)
    answer = Velocity(net)(x, torch.tensor([0.2, 0.9]), some_text(2), torch.tensor([1.0, 4.0]))
    assert (answer == 0).all()


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    velocity = Velocity(scrambled(FluxTransformer(SPEC)))
    noise, text = torch.randn(3, 16, 64), some_text(3)
    together = sample(velocity, noise, text, steps=3, shift=1.5, guidance=3.0)
    alone = sample(velocity, noise[1:2], text[1:2], steps=3, shift=1.5, guidance=3.0)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_guidance_of_one_is_the_conditional_pass() -> None:
    net = scrambled(FluxTransformer(UNGUIDED))
    x, text, sigma, one = torch.randn(2, 16, 64), some_text(2), torch.rand(2), torch.ones(2)
    empty = some_text(1)
    with torch.no_grad():
        plain = Velocity(net)(x, sigma, text, one)
        guided = ClassifierFree(net, empty)
        torch.testing.assert_close(guided(x, sigma, text, one), plain)
        without = Velocity(net)(x, sigma, empty.expand(2), one)
        torch.testing.assert_close(guided(x, sigma, text, 0 * one), without)


def test_dropped_prompts_become_the_empty_one() -> None:
    text, empty = some_text(3), some_text(1)
    mixed = text.without(torch.tensor([False, True, False]), empty)
    assert torch.equal(mixed.pooled[0], text.pooled[0])
    assert torch.equal(mixed.pooled[1], empty.pooled[0])
    assert torch.equal(mixed.sequence[1], empty.sequence[0])
