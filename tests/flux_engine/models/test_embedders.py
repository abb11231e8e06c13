import math

import pytest
import torch

from flux_engine.models.embedders import SINUSOID_WIDTH, MLPEmbedder, sinusoid


def test_zero_is_all_cosines() -> None:
    out = sinusoid(torch.zeros(2))
    assert out.shape == (2, SINUSOID_WIDTH)
    assert torch.equal(out, torch.tensor([1.0, 0.0]).repeat_interleave(128).expand(2, -1))


@pytest.mark.parametrize("x", [1.0, 3500.0, 857.692])
def test_cosines_then_sines_at_falling_frequencies(x: float) -> None:
    out = sinusoid(torch.tensor([x]))[0].tolist()
    for k in (0, 1, 64, 127):
        angle = x * 10000 ** (-k / 128)
        assert out[k] == pytest.approx(math.cos(angle), abs=5e-4)
        assert out[128 + k] == pytest.approx(math.sin(angle), abs=5e-4)
    assert out[0] == pytest.approx(math.cos(torch.tensor(x).item()), abs=1e-6)


def test_half_precision_input_is_computed_in_float32() -> None:
    out = sinusoid(torch.tensor([896.0], dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    assert torch.equal(out, sinusoid(torch.tensor([896.0])))


@pytest.mark.oracle
def test_sinusoids_are_those_of_diffusers() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    x = torch.tensor([0.0, 8.929, 602.151, 1000.0, 3500.0])
    theirs = get_timestep_embedding(x, SINUSOID_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoid(x), theirs, rtol=0, atol=1e-6)


def test_an_embedder_is_two_linear_layers_around_a_silu() -> None:
    embedder = MLPEmbedder(1, 1)
    with torch.no_grad():
        for layer, weight, bias in [(embedder.in_layer, 2, 1), (embedder.out_layer, 3, -1)]:
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    y = 2 * 0.5 + 1
    expected = 3 * (y / (1 + math.exp(-y))) - 1
    assert embedder(torch.tensor([[0.5]])).item() == pytest.approx(expected)
