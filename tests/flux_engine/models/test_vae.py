from collections.abc import Iterator

import pytest
import torch
from torch import nn

from flux_engine.models.vae import AutoEncoder, Downsample, Pointwise, VaeSpec
from tests.flux_engine.asking import noise, picture

TINY = VaeSpec(widths=(32, 32, 64, 64), encoder_blocks=1, decoder_blocks=1)
SIZES = [(16, 16), (64, 80), (48, 112)]


@pytest.fixture(scope="module")
def vae() -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(TINY).eval().requires_grad_(False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pictures_of_every_size_go_in_and_out(vae: AutoEncoder, height: int, width: int) -> None:
    x_BCHW = torch.stack([picture(i, height, width) for i in range(2)])
    z_BCHW = vae.encode(x_BCHW)
    assert z_BCHW.shape == (2, 16, height // 8, width // 8)
    out = vae.decode(z_BCHW)
    assert out.shape == x_BCHW.shape
    assert out.isfinite().all()


def test_encoding_draws_nothing(vae: AutoEncoder) -> None:
    x_BCHW = picture(0)[None]
    assert torch.equal(vae.encode(x_BCHW), vae.encode(x_BCHW))
    mean, logvar = vae.moments(x_BCHW)
    torch.testing.assert_close(vae.encode(x_BCHW), (mean - 0.1159) * 0.3611)
    assert not torch.equal(mean, logvar)


def test_latents_are_unscaled_before_the_decoder(vae: AutoEncoder) -> None:
    z_BCHW = noise(0, 1, 16, 4, 6)
    torch.testing.assert_close(vae.decode(z_BCHW), vae.decoder(z_BCHW / 0.3611 + 0.1159))


def test_rows_do_not_see_each_other(vae: AutoEncoder) -> None:
    z_BCHW = noise(0, 3, 16, 4, 6)
    changed = z_BCHW.clone()
    changed[1] = float("nan")
    out, among = vae.decode(z_BCHW), vae.decode(changed)
    assert torch.equal(out[[0, 2]], among[[0, 2]])
    assert among[1].isnan().all()


def test_halving_pads_the_right_and_the_bottom() -> None:
    down = Downsample(1)
    with torch.no_grad():
        down.conv.weight.zero_()
        down.conv.weight[0, 0, 0, 0] = 1.0  # takes the upper left of each window
        assert down.conv.bias is not None
        down.conv.bias.zero_()
    x = noise(0, 1, 1, 4, 6)
    assert torch.equal(down(x), x[..., ::2, ::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pointwise_layer_is_a_convolution_of_one_pixel(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = Pointwise(48, 32).to(dtype), noise(0, 3, 48, 5, 7).to(dtype)
    assert layer.weight.shape == (32, 48, 1, 1)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(layer(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(
    vae: AutoEncoder, dtype: torch.dtype, batch: int
) -> None:
    """oneDNN's convolutions of one pixel would: hence `Pointwise`."""
    model = AutoEncoder(TINY).eval().requires_grad_(False)
    model.load_state_dict(vae.state_dict())
    model = model.to(dtype)
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        z_BCHW = model.encode(torch.stack([picture(i) for i in range(batch)]).to(dtype))
        made.append((z_BCHW, model.decode(z_BCHW)))
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))


def test_flux_has_its_published_parameters() -> None:
    with torch.device("meta"):
        vae = AutoEncoder(VaeSpec())
    sizes = [sum(p.numel() for p in half.parameters()) for half in (vae.encoder, vae.decoder)]
    assert sizes == [34_274_208, 49_545_475]
    assert vae.spec.factor == 8
