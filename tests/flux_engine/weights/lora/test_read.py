from pathlib import Path

import pytest
import torch

from flux_engine.errors import CheckpointError, SourceError
from flux_engine.models.dit import FluxSpec
from flux_engine.weights.lora.changes import LowRank
from flux_engine.weights.lora.file import full_delta
from flux_engine.weights.lora.names import Sizes, module_shapes
from flux_engine.weights.lora.read import lora_file, read_lora
from tests.flux_engine.weights.lora.written import LAYOUTS, TINY, TRUE, A, B, Drawn, encoders


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", [TINY, TRUE], ids=["tiny", "true"])
def test_every_layout_means_the_change_that_its_writer_meant(
    layout: str, spec: FluxSpec, tmp_path: Path
) -> None:
    drawn = LAYOUTS[layout](spec)
    lora = read_lora(drawn.save(tmp_path), Sizes(spec))
    modules = {module for _, module, parameter in lora.targets if parameter == "weight"}
    assert modules == set(drawn.deltas)
    for module in modules:
        parts = lora.targets["dit", module, "weight"]
        base = torch.empty(module_shapes(spec)[module], device="meta")  # no layout here needs it
        made = full_delta(parts, base)
        assert made.shape == base.shape
        assert drawn.error(module, made) <= 1e-6, module


def broken(drawn: Drawn, folder: Path, sizes: Sizes | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_lora(drawn.save(folder), sizes or Sizes(TINY))
    return caught.value


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("transformer.transformer_blocks.0.attn.to_x.lora_A.weight", "no such module"),
        ("transformer.transformer_blocks.7.attn.to_q.lora_A.weight", "2 double and 2 single"),
        ("some.thing", "no known form"),
        ("diffusion_model.img_in.reshape_weight", "changes the shape of a weight"),
        ("bundle_emb.owl.string_to_param", "textual inversion"),
        ("transformer.proj_out.lora_time_gamma.weight", "timestep"),
        ("lora_unet_single_blocks_0_linear1.oft_blocks", "OFT"),
        ("lora_unet_single_blocks_0_linear1.lora_mid.weight", "Tucker"),
        ("transformer.proj_out.lora_A.other.weight", "two tensors of that meaning"),
    ],
)
def test_a_tensor_that_is_not_used_is_named_with_the_reason(
    key: str, words: str, tmp_path: Path
) -> None:
    drawn = LAYOUTS["1 diffusers"](TINY)
    drawn.tensor(key, 2, 64)
    error = broken(drawn, tmp_path)
    name = key.removesuffix(".other.weight")
    assert any(told.startswith(name) and words in told for told in error.unexpected)


@pytest.mark.parametrize("lost", [".lora_A.weight", ".lora_B.weight"])
def test_half_a_pair_is_named(lost: str, tmp_path: Path) -> None:
    drawn = LAYOUTS["1 diffusers"](TINY)
    del drawn.tensors[f"transformer.proj_out{lost}"]
    assert "transformer.proj_out" in broken(drawn, tmp_path).missing[0]


def test_an_alpha_without_factors_is_named(tmp_path: Path) -> None:
    drawn = LAYOUTS["3 kohya"](TINY)
    drawn.alpha("lora_unet_img_in.alpha", 2.0)
    for end in (".lora_down.weight", ".lora_up.weight"):
        del drawn.tensors[f"lora_unet_img_in{end}"]
    assert broken(drawn, tmp_path).missing == ("lora_unet_img_in: factors to go with its alpha",)


def test_factors_of_another_width_are_named_with_both_shapes(tmp_path: Path) -> None:
    drawn = LAYOUTS["5 bare BFL"](TINY)
    drawn.tensor("img_in.lora_A.weight", 2, 32)  # a control LoRA widens it
    (told,) = broken(drawn, tmp_path).misshapen
    assert told == "img_in (changes 64×32, the model has 64×16)"


def test_integers_and_unequal_ranks_are_named(tmp_path: Path) -> None:
    drawn = LAYOUTS["5 bare BFL"](TINY)
    drawn.tensors["txt_in.lora_A.weight"] = torch.ones(2, 48, dtype=torch.int8)
    drawn.tensor("img_in.lora_A.weight", 5, 16)
    error = broken(drawn, tmp_path)
    assert error.unexpected == ("txt_in.lora_A.weight (holds int8)",)
    assert any("factors of one rank (down has 5, up 2)" in told for told in error.missing)


def test_one_module_under_two_names_is_refused(tmp_path: Path) -> None:
    drawn = LAYOUTS["1 diffusers, q only"](TINY)
    drawn.tensors |= LAYOUTS["3 kohya"](TINY).tensors
    (told, *_) = broken(drawn, tmp_path).unexpected
    assert "the same rows as" in told


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "holds no tensors" in str(broken(Drawn(), tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_are_read_off_the_file_where_there_is_no_model(layout: str, tmp_path: Path) -> None:
    file = LAYOUTS[layout](TINY).save(tmp_path)
    alone, told = read_lora(file), read_lora(file, Sizes(TINY))
    assert [(p.target, p.place.rows) for p in alone.parts] == [
        (p.target, p.place.rows) for p in told.parts
    ]


def test_biases_follow_the_scale_of_their_writer(tmp_path: Path) -> None:
    drawn = LAYOUTS["13 full differences"](TINY)
    lora = read_lora(drawn.save(tmp_path), Sizes(TINY))
    for module, ((_, wanted),) in drawn.biases.items():
        (part,) = lora.targets["dit", module, "bias"]
        assert torch.equal(part.delta(None).double(), wanted)
    control = LAYOUTS["5 bare BFL"](TINY)
    control.alpha("txt_in.alpha", 1.0)
    part = read_lora(control.save(tmp_path), Sizes(TINY)).targets["dit", "txt_in", "bias"][0]
    rank = len(control.tensors["txt_in.lora_A.weight"])
    assert torch.allclose(part.delta(None), control.tensors["txt_in.lora_B.bias"] / rank)


def test_encoders_of_kohya_and_of_diffusers_are_the_same_places(tmp_path: Path) -> None:
    kohya = encoders()
    names = {
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        ),
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
        ),
    }
    other = Drawn()
    for ours, theirs in names.items():
        for end, their_end in ((".lora_down.weight", A), (".lora_up.weight", B)):
            other.tensors[theirs + their_end] = kohya.tensors[ours + end]
    found = read_lora(kohya.save(tmp_path / "a")), read_lora(other.save(tmp_path / "b"))
    assert {p.place for p in found[1].parts} < {p.place for p in found[0].parts}


def test_the_file_of_a_folder_is_the_usual_one_or_the_only_one(tmp_path: Path) -> None:
    one = LAYOUTS["2 peft, config beside"](TINY).save(tmp_path)
    files = [tmp_path / "adapter_config.json", one, tmp_path / "optimizer.safetensors"]
    assert lora_file(files) == one
    with pytest.raises(SourceError, match=r"these are 2: a\.safetensors, b\.safetensors"):
        lora_file([Path("a.safetensors"), Path("b.safetensors")])


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "lora.pt").write_bytes(b"x")
    with pytest.raises(SourceError, match="pickle"):
        read_lora(tmp_path / "lora.pt")


def test_an_alpha_is_one_finite_number_of_any_type(tmp_path: Path) -> None:
    drawn = LAYOUTS["3 kohya"](TINY)
    key = next(key for key in drawn.tensors if key.endswith(".alpha"))
    drawn.tensors[key] = torch.tensor(8)
    lora = read_lora(drawn.save(tmp_path), Sizes(TINY))
    (part,) = (part for part in lora.parts if part.name == key.removesuffix(".alpha"))
    assert isinstance(part.change, LowRank)
    assert part.change.alpha == 8.0
    for wrong in (torch.ones(2), torch.tensor(torch.inf)):
        drawn.tensors[key] = wrong
        (told,) = broken(drawn, tmp_path).unexpected
        assert told == f"{key} (is not one finite number)"


def test_factors_without_a_rank_are_named(tmp_path: Path) -> None:
    drawn = LAYOUTS["5 bare BFL"](TINY)
    drawn.tensor("img_in.lora_A.weight", 0, 16)
    drawn.tensor("img_in.lora_B.weight", 64, 0)
    assert any("down has 0, up 0" in told for told in broken(drawn, tmp_path).missing)
