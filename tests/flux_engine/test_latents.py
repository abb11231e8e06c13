import pytest
import torch

from flux_engine.latents import pack, position_ids, start_noise, unpack
from tests.flux_engine.asking import noise


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (10, 6), (6, 26)])
def test_unpacking_undoes_packing(size: tuple[int, int]) -> None:
    z_BZHW = noise(0, 3, 16, *size)
    x_BSC = pack(z_BZHW)
    assert x_BSC.shape == (3, size[0] * size[1] // 4, 64)
    assert torch.equal(unpack(x_BSC, *size), z_BZHW)


def test_tokens_run_along_rows_and_hold_channels_of_rows_of_columns() -> None:
    z_BZHW = noise(0, 1, 16, 6, 4)
    x_BSC = pack(z_BZHW)
    for row, column, channel, p, q in [(0, 0, 0, 0, 1), (2, 1, 5, 1, 0), (1, 0, 15, 1, 1)]:
        packed = x_BSC[0, row * 2 + column, channel * 4 + p * 2 + q]
        assert packed == z_BZHW[0, channel, 2 * row + p, 2 * column + q]


@pytest.mark.oracle
def test_packing_and_positions_are_those_of_diffusers() -> None:
    from diffusers import FluxPipeline

    z_BZHW = noise(0, 2, 16, 6, 10)
    assert torch.equal(pack(z_BZHW), FluxPipeline._pack_latents(z_BZHW, 2, 16, 6, 10))
    theirs = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert torch.equal(position_ids(7, 6, 10)[7:].float(), theirs)


def test_text_stands_at_the_origin_and_image_tokens_count_patches() -> None:
    ids = position_ids(4, 6, 10)
    assert ids.shape == (4 + 3 * 5, 3)
    assert not ids[:4].any()
    assert ids[4 + 2 * 5 + 3].tolist() == [0, 2, 3]


def test_positions_stay_apart_beyond_4096_pixels() -> None:
    ids = position_ids(0, 2, 2 * 600)
    assert len({tuple(row) for row in ids.tolist()}) == 600
    assert ids[599].tolist() == [0, 0, 599]


def test_noise_is_what_torch_draws_for_the_seed() -> None:
    drawn = start_noise(7, (16, 8, 10))
    expected = torch.randn(1, 16, 8, 10, generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(drawn, expected[0])
    assert drawn.dtype == torch.float32


def test_noise_cast_to_bfloat16_is_what_torch_draws_in_bfloat16() -> None:
    generator = torch.Generator("cpu").manual_seed(7)
    expected = torch.randn(16, 8, 10, generator=generator, dtype=torch.bfloat16)
    assert torch.equal(start_noise(7, (16, 8, 10)).bfloat16(), expected)


@pytest.mark.oracle
def test_noise_is_what_diffusers_draws() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    generator = torch.Generator("cpu").manual_seed(7)
    theirs = randn_tensor((1, 16, 8, 10), generator=generator, dtype=torch.float32)
    assert torch.equal(start_noise(7, (16, 8, 10)), theirs[0])


def test_drawing_noise_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    start_noise(7, (16, 8, 8))
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_drawn_on_the_card_comes_to_the_host() -> None:
    drawn = start_noise(7, (16, 8, 8), "cuda")
    generator = torch.Generator("cuda").manual_seed(7)
    assert torch.equal(drawn, torch.randn(16, 8, 8, generator=generator, device="cuda").cpu())
    assert drawn.device.type == "cpu"
