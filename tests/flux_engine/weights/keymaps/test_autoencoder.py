import pytest
import torch

from flux_engine.errors import CheckpointError
from flux_engine.models.vae import AutoEncoder, VaeSpec
from flux_engine.weights.keymaps.autoencoder import vae_spec
from flux_engine.weights.load import assemble
from flux_engine.weights.stored import shapes_of
from tests.flux_engine.weights.published import published
from tests.parity import diffusers_layout, tiny
from tests.parity.tiny import TinySpec


@pytest.mark.parametrize("name", ["flux1-dev-ae", "flux1-dev-vae-diffusers"])
def test_the_spec_is_read_from_the_shapes(name: str) -> None:
    assert vae_spec(shapes_of(published(name).meta())) == VaeSpec()


def test_both_layouts_of_one_autoencoder_are_equal_bit_for_bit() -> None:
    spec = TinySpec()
    weights = tiny.autoencoder_weights(spec)
    theirs = diffusers_layout.autoencoder(weights)
    assert theirs["encoder.mid_block.attentions.0.to_q.weight"].ndim == 2
    _, plain = assemble(weights, where="bfl", dtype=torch.float32)
    _, converted = assemble(theirs, where="diffusers", dtype=torch.float32)
    assert isinstance(plain, AutoEncoder)
    assert plain.spec == spec.vae
    state = converted.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)


def test_any_width_and_depth_is_read() -> None:
    spec = VaeSpec(widths=(32, 64, 96), latent_channels=4, encoder_blocks=1, decoder_blocks=2)
    weights = AutoEncoder(spec).state_dict()
    assert vae_spec(shapes_of(weights)) == spec
    assert vae_spec(shapes_of(diffusers_layout.autoencoder(weights))) == spec


def test_widths_that_the_norms_cannot_group_are_refused() -> None:
    weights = {f"encoder.down.0.block.0.{part}.weight": torch.zeros(40) for part in ("norm2",)}
    with pytest.raises(CheckpointError, match="not multiples of 32"):
        vae_spec(shapes_of(weights))
