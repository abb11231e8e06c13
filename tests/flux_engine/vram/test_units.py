import torch
from torch import nn

from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.models.text import CLIP_L, T5_XXL, build_clip, build_t5
from flux_engine.models.vae import AutoEncoder, VaeSpec
from flux_engine.vram.units import Unit, named_tensors, units_of


def on_meta(build: object) -> nn.Module:
    with torch.device("meta"):
        return build()  # type: ignore[operator, no-any-return]


def by_kind(model: nn.Module) -> dict[str, list[Unit]]:
    out: dict[str, list[Unit]] = {"block": [], "table": [], "rest": []}
    for unit in units_of(model):
        out[unit.kind].append(unit)
    return out


def test_every_tensor_is_in_one_unit() -> None:
    for build in (lambda: FluxTransformer(FluxSpec()), lambda: AutoEncoder(VaeSpec())):
        model = on_meta(build)
        keys = [key for unit in units_of(model) for key in unit.tensors]
        assert sorted(keys) == sorted(named_tensors(model))


def test_flux_dev_in_bf16_weighs_what_is_known_of_it() -> None:
    kinds = by_kind(on_meta(lambda: FluxTransformer(FluxSpec()).bfloat16()))
    assert [len(kinds[kind]) for kind in ("block", "table", "rest")] == [57, 58, 1]
    assert [unit.name for unit in kinds["block"][18:20]] == ["double_blocks.18", "single_blocks.0"]
    numbers = {kind: sum(unit.nbytes for unit in units) // 2 for kind, units in kinds.items()}
    assert sum(numbers.values()) == 11_901_408_320
    assert round(numbers["table"] / 1e9, 3) == 3.247
    assert round(numbers["rest"] / 1e9, 3) == 0.045
    assert [round(kinds["block"][i].nbytes / 1e6) for i in (0, 56)] == [453, 227]


def test_a_part_asks_for_its_modulation_only_where_the_table_is_made() -> None:
    model = FluxTransformer(FluxSpec(64, 2, (4, 14, 14), 128, 1, 1))
    kinds = by_kind(model)
    double, single, final = kinds["table"]
    assert double.modules == (model.double_blocks[0].img_mod, model.double_blocks[0].txt_mod)
    assert single.modules == (model.single_blocks[0].modulation,)
    assert final.modules == (model.final_layer.adaLN_modulation,)
    assert not any("mod" in key for unit in kinds["block"] for key in unit.tensors)


def test_text_encoders_stream_by_layer_and_the_autoencoder_is_one_piece() -> None:
    t5, clip = on_meta(lambda: build_t5(T5_XXL)), on_meta(lambda: build_clip(CLIP_L))
    assert [len(by_kind(model)["block"]) for model in (t5, clip)] == [24, 12]
    assert "shared.weight" in units_of(t5)[-1].tensors
    assert [unit.name for unit in units_of(on_meta(lambda: AutoEncoder(VaeSpec())))] == ["rest"]
