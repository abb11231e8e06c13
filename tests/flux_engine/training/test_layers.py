import pytest

from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxSpec
from flux_engine.training.layers import by_pattern, chosen_layers, linear_layers
from tests.flux_engine.training.rows import TINY

DEV = FluxSpec()
# as the scripts of DiffSynth-Studio list them
LISTED = [
    *("a_to_qkv", "b_to_qkv", "ff_a.0", "ff_a.2", "ff_b.0", "ff_b.2", "a_to_out", "b_to_out"),
    *("proj_out", "norm.linear", "norm1_a.linear", "norm1_b.linear", "to_qkv_mlp"),
]


def test_presets_have_as_many_layers_as_published() -> None:
    assert len(chosen_layers(["all"], DEV)) == 304
    assert len(chosen_layers(["all+globals"], DEV)) == 314 == len(linear_layers(DEV))
    assert len(chosen_layers(["attention"], DEV)) == 19 * 4 + 38 * 2
    both = chosen_layers(["all"], DEV)
    assert sum(name.startswith("double") for name in both) == 190


def test_auto_means_the_large_layers_of_the_blocks() -> None:
    assert chosen_layers(["auto"], DEV) == chosen_layers(["all"], DEV)
    narrow = FluxSpec(width=512, heads=4, inner=256)
    chosen = chosen_layers(["auto"], narrow)
    assert "double_blocks.0.img_attn.qkv" in chosen
    assert "double_blocks.0.img_mlp.0" not in chosen
    with pytest.raises(SettingError, match="auto: no layer of the blocks has both sides of 512"):
        chosen_layers(["auto"], TINY)


def test_rank_32_on_all_layers_has_the_published_number_of_parameters() -> None:
    sizes = [linear_layers(DEV)[name] for name in chosen_layers(["all"], DEV)]
    assert sum(32 * (rows + columns) for rows, columns in sizes) == 153_157_632


def test_the_list_of_the_existing_scripts_means_all_blocks() -> None:
    assert chosen_layers(LISTED, DEV) == chosen_layers(["all"], DEV)


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("double_blocks.*.img_attn.qkv", ["double_blocks.0.img_attn.qkv"]),
        ("img_attn.qkv", ["double_blocks.0.img_attn.qkv"]),
        ("a_to_qkv", ["double_blocks.0.img_attn.qkv"]),
        ("blocks.0.norm1_a.linear", ["double_blocks.0.img_mod.lin"]),
        ("ff_context.net.0.proj", ["double_blocks.0.txt_mlp.0"]),
        ("proj_out", ["single_blocks.0.linear2"]),
        ("to_qkv_mlp", ["single_blocks.0.linear1"]),
        ("final_proj_out", ["final_layer.linear"]),
        (r"re:double_blocks\.0\.(img|txt)_mlp\.2", ["double_blocks.0.img_mlp.2"]),
    ],
)
def test_a_layer_has_several_names(pattern: str, layers: list[str]) -> None:
    assert set(layers) <= set(chosen_layers([pattern], TINY))
    assert len(chosen_layers([pattern], TINY)) <= 3


def test_diffusers_names_mean_a_layer_when_all_its_parts_are_named() -> None:
    parts = [f"transformer_blocks.*.attn.{part}" for part in ("to_q", "to_k", "to_v")]
    # behind a dot the pattern would mean single blocks too, and they have a fourth part
    singles = [f"re:transformer_blocks\\..*\\.attn\\.{part}" for part in ("to_q", "to_k", "to_v")]
    assert chosen_layers(singles, TINY) == tuple(f"double_blocks.{i}.img_attn.qkv" for i in (0, 1))
    assert chosen_layers(parts, TINY) == chosen_layers(singles, TINY)
    with pytest.raises(SettingError, match=r"to_q: only a part of .*name .*to_k, .*to_v too"):
        chosen_layers(singles[:1], TINY)


def test_a_layer_that_is_excluded_is_not_trained() -> None:
    rest = chosen_layers(["all"], TINY, exclude=["single_blocks.*", "*_mod.lin"])
    assert len(rest) == 2 * 8
    with pytest.raises(SettingError, match="nothing is left"):
        chosen_layers(["single_blocks.*"], TINY, exclude=["all"])


@pytest.mark.parametrize("pattern", ["img_attn.qvk", "re:.*[", "double_blocks.7.*", "", "query"])
def test_a_pattern_that_matches_nothing_is_named(pattern: str) -> None:
    with pytest.raises(SettingError, match=r"matches no linear layer|no regular") as no:
        chosen_layers(["all", pattern], TINY)
    assert repr(pattern) in str(no.value)


def test_the_first_pattern_that_means_a_layer_counts() -> None:
    layers = chosen_layers(["img_attn.qkv", "img_mlp.?"], TINY)
    values = by_pattern({"double_blocks.0.*": 4, "img_attn.qkv": 8}, layers, TINY, "ranks")
    assert values == {
        "double_blocks.0.img_attn.qkv": 4,
        "double_blocks.0.img_mlp.0": 4,
        "double_blocks.0.img_mlp.2": 4,
        "double_blocks.1.img_attn.qkv": 8,
    }
    with pytest.raises(SettingError, match=r"ranks: 'txt_attn.qkv' means no layer that is trained"):
        by_pattern({"txt_attn.qkv": 8}, layers, TINY, "ranks")
    with pytest.raises(SettingError, match=r"ranks: all that 'img_mlp.0' means is meant by"):
        by_pattern({"double_blocks.*": 4, "img_mlp.0": 8}, layers, TINY, "ranks")
