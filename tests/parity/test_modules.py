"""The modules against diffusers' own, on the same weights, and the modulation table."""

import pytest
import torch
from torch import Tensor

from flux_engine.latents import position_ids
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from flux_engine.sampling.denoise import Conditions, modulation_table
from tests.parity import tiny
from tests.parity.agreement import assert_pixels_agree, deviation
from tests.parity.diffusers_oracle import build_autoencoder, build_transformer
from tests.parity.tiny import SCALE, SHIFT, TinySpec

ROWS, COLUMNS, TEXT = 6, 4, 9  # tokens
KINDS = pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
BATCHES = pytest.mark.parametrize("batch", [1, 3])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(spec: TinySpec) -> FluxTransformer:
    model = FluxTransformer(spec.flux)
    model.load_state_dict(tiny.transformer_weights(spec))
    return model.eval().requires_grad_(False)


def build_vae(spec: TinySpec) -> AutoEncoder:
    model = AutoEncoder(spec.vae)
    model.load_state_dict(tiny.autoencoder_weights(spec))
    return model.eval().requires_grad_(False)


@KINDS
@BATCHES
def test_the_velocity_is_that_of_diffusers(guidance: bool, batch: int) -> None:
    spec = TinySpec(guidance=guidance)
    x_BSC = normal(1, batch, ROWS * COLUMNS, 64)
    text_BTW = normal(2, batch, TEXT, spec.t5.width)
    pooled_BP = normal(3, batch, spec.clip.width)
    sigma_B = torch.tensor([1.0, 0.625, 0.03125])[:batch]
    guidance_B = torch.tensor([3.5, 1.0, 7.0])[:batch]
    ids = position_ids(TEXT, 2 * ROWS, 2 * COLUMNS)

    ours = build(spec)
    velocity = ours(
        x_BSC,
        text_BTW,
        ours.modulate(ours.condition(sigma_B, pooled_BP, guidance_B)),
        ours.rotation(ids),
    )
    theirs = build_transformer(spec, tiny.transformer_weights(spec))
    expected = theirs(
        hidden_states=x_BSC,
        encoder_hidden_states=text_BTW,
        pooled_projections=pooled_BP,
        timestep=sigma_B,
        guidance=guidance_B if guidance else None,
        img_ids=ids[TEXT:].float(),
        txt_ids=ids[:TEXT].float(),
    ).sample
    assert expected.std() > 0.3
    assert deviation(velocity, expected) < 5e-6


@BATCHES
def test_pictures_are_encoded_to_the_mean_of_diffusers(batch: int) -> None:
    spec = TinySpec()
    x_BCHW = normal(4, batch, 3, 48, 32).clamp(-1, 1)
    theirs = build_autoencoder(spec, tiny.autoencoder_weights(spec))
    posterior = theirs.encode(x_BCHW).latent_dist
    ours = build_vae(spec)
    mean, logvar = ours.moments(x_BCHW)
    assert posterior.mean.std() > 0.1
    assert deviation(mean, posterior.mean) < 5e-6
    assert deviation(logvar, posterior.logvar) < 5e-6
    assert deviation(ours.encode(x_BCHW), (posterior.mean - SHIFT) * SCALE) < 5e-6


@BATCHES
def test_latents_are_decoded_as_by_diffusers(batch: int) -> None:
    spec = TinySpec()
    z_BCHW = normal(5, batch, 16, 6, 4)
    theirs = build_autoencoder(spec, tiny.autoencoder_weights(spec))
    expected = theirs.decode(z_BCHW / SCALE + SHIFT).sample
    assert expected.std() > 0.1
    assert_pixels_agree(build_vae(spec).decode(z_BCHW), expected)


@KINDS
def test_the_table_of_all_steps_is_that_of_each_step(guidance: bool) -> None:
    spec, batch = TinySpec(guidance=guidance), 3
    model = build(spec).double()
    pooled_BP = normal(6, batch, spec.clip.width).double()
    told = Conditions(
        text_GTW=torch.empty(0),
        pooled_GP=pooled_BP,
        guidance_G=torch.tensor([3.5, 1.0, 7.0]),
        cfg_B=None,
    )
    sigma_N = torch.linspace(1.0, 0.01, 5)
    table_NGMD = modulation_table(model, sigma_N, told)
    for rows_GMD, sigma in zip(table_NGMD, sigma_N, strict=True):
        condition = model.condition(sigma.expand(batch), pooled_BP, told.guidance_G)
        assert deviation(rows_GMD, model.modulate(condition)) < 1e-12
