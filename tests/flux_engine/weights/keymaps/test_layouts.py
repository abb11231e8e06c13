import pytest

from flux_engine.errors import CheckpointError
from flux_engine.weights.keymaps.layouts import PREFIX, prefix_of, recognise
from tests.flux_engine.weights.published import NAMES, published

LAYOUTS = {
    "clip": "CLIP text encoder",
    "flex2-preview": "BFL transformer",
    "flux1-dev": "BFL transformer",
    "flux1-dev-ae": "BFL autoencoder",
    "flux1-dev-transformer-diffusers": "diffusers transformer",
    "flux1-dev-vae-diffusers": "diffusers autoencoder",
    "flux1-fill-dev": "BFL transformer",
    "flux1-schnell": "BFL transformer",
    "flux1-schnell-transformer-diffusers": "diffusers transformer",
    "t5": "T5 encoder",
}


@pytest.mark.parametrize("name", NAMES)
def test_each_published_list_is_in_one_layout(name: str) -> None:
    assert recognise(published(name).tensors, name) == LAYOUTS[name]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("flux1-dev", "flux1-dev-transformer-diffusers"),
        ("flux1-dev-ae", "flux1-dev-vae-diffusers"),
        ("clip", "t5"),
    ],
)
def test_two_layouts_in_one_are_named(one: str, other: str) -> None:
    keys = published(one).tensors | published(other).tensors
    with pytest.raises(CheckpointError, match=f"mixed: {LAYOUTS[one]}, {LAYOUTS[other]}"):
        recognise(keys, "both")


@pytest.mark.parametrize("keys", [[], ["lora_unet_single_blocks_0_linear1.alpha"]])
def test_an_unknown_layout_shows_some_of_its_keys(keys: list[str]) -> None:
    with pytest.raises(CheckpointError, match=keys[0] if keys else "no tensors"):
        recognise(keys, "lora")


def test_a_prefix_counts_when_every_key_has_it() -> None:
    assert prefix_of([f"{PREFIX}img_in.weight", f"{PREFIX}img_in.bias"]) == PREFIX
    assert prefix_of([f"{PREFIX}img_in.weight", "vae.x"]) == ""
