import pytest

from flux_engine.models.dit import FluxSpec
from flux_engine.weights.lora.names import Catalogue, Place, Sizes, flat, module_shapes, spellings
from tests.flux_engine.weights.lora import written
from tests.flux_engine.weights.lora.written import TINY, TRUE

WORLDS = {"bfl": written.bfl, "diffusers": written.diffusers, "diffsynth": written.diffsynth}


@pytest.mark.parametrize("spec", [TINY, TRUE, FluxSpec()], ids=["tiny", "one block", "published"])
def test_no_two_names_fall_together(spec: FluxSpec) -> None:
    Catalogue(Sizes(spec))  # would fail on a name with two meanings


@pytest.mark.parametrize("world", WORLDS)
def test_every_linear_layer_has_a_name_in_every_world(world: str) -> None:
    wanted = WORLDS[world](TINY)
    named = {
        name: module
        for module in module_shapes(TINY)
        if not module.endswith("_norm")
        for name, _ in spellings(module, TINY, world)  # type: ignore[arg-type]
    }
    assert named == {name: means.module for name, means in wanted.items()}


@pytest.mark.parametrize(
    ("name", "module", "rows"),
    [
        ("transformer.transformer_blocks.1.attn.to_k", "double_blocks.1.img_attn.qkv", (64, 128)),
        ("lora_unet_double_blocks_1_txt_attn_qkv", "double_blocks.1.txt_attn.qkv", (0, 192)),
        ("base_model.model.single_blocks.0.linear1", "single_blocks.0.linear1", (0, 448)),
        ("single_blocks.0.processor.qkv_lora", "single_blocks.0.linear1", (0, 192)),
        ("pipe.dit.single_blocks.1.to_qkv_mlp", "single_blocks.1.linear1", (0, 448)),
        ("diffusion_model.double_blocks.0.img_mlp_0", "double_blocks.0.img_mlp.0", (0, 256)),
        ("lycoris_single_transformer_blocks_0_proj_mlp", "single_blocks.0.linear1", (192, 448)),
    ],
)
def test_prefixes_dots_and_underscores_lead_to_the_same_places(
    name: str, module: str, rows: tuple[int, int]
) -> None:
    place = Catalogue(Sizes(TINY)).find(name)
    assert place is not None
    assert (place.role, place.module, place.rows) == ("dit", module, (rows,))


def test_the_last_norm_is_published_the_other_way_round_by_diffusers() -> None:
    place = Catalogue(Sizes(TINY)).find("transformer.norm_out.linear")
    assert place is not None
    assert place.rows == ((64, 128), (0, 64))


def test_encoders_are_found_with_or_without_the_old_prefix() -> None:
    catalogue = Catalogue(Sizes(TINY, clip_layers=2, t5_layers=2))
    long = catalogue.find("lora_te1_text_model_encoder_layers_1_mlp_fc1")
    short = catalogue.find("text_encoder.encoder.layers.1.mlp.fc1")
    assert long == short == Place("clip", "text_model.encoder.layers.1.mlp.fc1")
    assert catalogue.find("lora_te3_encoder_block_2_layer_0_SelfAttention_q") is None


def test_an_unknown_prefix_is_no_prefix() -> None:
    assert Catalogue(Sizes(TINY)).find("model.img_in") is None
    assert flat("a.b_c.d") == "a_b_c_d"
