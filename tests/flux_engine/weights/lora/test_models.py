from pathlib import Path

import pytest
import torch

from flux_engine.assembly import open_model
from flux_engine.errors import CheckpointError
from flux_engine.models.dit import FluxTransformer
from flux_engine.weights.load import load_models
from flux_engine.weights.lora.models import Models
from flux_engine.weights.lora.read import read_lora
from tests.flux_engine.weights.lora.written import DOWN, LAYOUTS, TINY, UP, Drawn, encoders


@pytest.fixture(scope="module")
def shapes() -> Models:
    _, groups = open_model("flux-shapes")
    loaded = load_models(groups, dtype=torch.float32)
    assert loaded.dit is not None
    return Models(loaded.dit, loaded.clip, loaded.t5)


def test_targets_have_the_names_of_their_own_models(shapes: Models, tmp_path: Path) -> None:
    width = shapes.clip.config.hidden_size  # type: ignore[union-attr]
    drawn = Drawn()
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    drawn.tensor(name + DOWN, 2, width)  # type: ignore[arg-type]
    drawn.tensor(name + UP, width, 2)  # type: ignore[arg-type]
    lora = read_lora(drawn.save(tmp_path), shapes.sizes)
    ((target, found),) = shapes.names(lora).items()
    assert target[0] == "clip"
    assert shapes.parameters("clip")[found].shape == (width, width)
    assert found.endswith("encoder.layers.0.self_attn.q_proj.weight")


def test_what_a_model_has_not_is_listed(tmp_path: Path) -> None:
    with torch.device("meta"):
        alone = Models(FluxTransformer(TINY))
    assert (alone.sizes.clip_layers, alone.sizes.t5_layers) == (12, 24)
    with pytest.raises(CheckpointError) as caught:
        alone.names(read_lora(encoders().save(tmp_path), alone.sizes))
    assert len(caught.value.missing) == 4
    assert "the file calls it lora_te3_encoder_block_0" in caught.value.missing[0]


def test_an_encoder_of_another_width_is_refused(shapes: Models, tmp_path: Path) -> None:
    drawn = Drawn()
    name = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    drawn.tensor(name + DOWN, 2, 7)
    drawn.tensor(name + UP, 9, 2)
    with pytest.raises(CheckpointError, match=r"changes \(9, 7\), the model has"):
        shapes.names(read_lora(drawn.save(tmp_path), shapes.sizes))


def test_every_part_of_every_layout_has_a_parameter(tmp_path: Path) -> None:
    with torch.device("meta"):
        models = Models(FluxTransformer(TINY))
    for draw in LAYOUTS.values():
        lora = read_lora(draw(TINY).save(tmp_path), models.sizes)
        assert set(models.names(lora)) == set(lora.targets)
