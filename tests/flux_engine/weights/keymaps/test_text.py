import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flux_engine.errors import CheckpointError
from flux_engine.weights.load import assemble
from tests.flux_engine.weights.published import published
from tests.parity import tiny
from tests.parity.tiny import TinySpec, Weights

SPEC = TinySpec()
SHARED, EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"
POSITIONS = "text_model.embeddings.position_ids"


@pytest.fixture
def clip_config(tmp_path: Path) -> Path:
    return written(tmp_path / "clip.json", tiny.clip_config(SPEC))


@pytest.fixture
def t5_config(tmp_path: Path) -> Path:
    return written(tmp_path / "t5.json", tiny.t5_config(SPEC))


def written(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values))
    return path


def load(weights: Weights, config: Path | None) -> torch.nn.Module:
    return assemble(weights, where="file", dtype=torch.float32, config=config)[1]


def values(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_clip_is_read_with_and_without_its_prefix(prefix: str, clip_config: Path) -> None:
    bare = {k.removeprefix("text_model."): v for k, v in tiny.clip_weights(SPEC).items()}
    state = values(load({prefix + key: tensor for key, tensor in bare.items()}, clip_config))
    assert state.keys() == bare.keys()
    assert all(torch.equal(state[key], bare[key]) for key in bare)


@pytest.mark.parametrize("shape", [(1, 77), (77,)])
def test_the_position_numbers_of_older_files_are_known(
    shape: tuple[int, ...], clip_config: Path
) -> None:
    positions = {POSITIONS: torch.arange(77).reshape(shape)}
    load(tiny.clip_weights(SPEC) | positions, clip_config)


def test_other_position_numbers_are_refused(clip_config: Path) -> None:
    weights = tiny.clip_weights(SPEC) | {POSITIONS: torch.zeros(1, 77)}
    with pytest.raises(CheckpointError, match="position_ids"):
        load(weights, clip_config)


def test_clip_has_its_position_numbers_after_loading(clip_config: Path) -> None:
    buffers = dict(load(tiny.clip_weights(SPEC), clip_config).named_buffers())
    (positions,) = buffers.values()
    assert torch.equal(positions, torch.arange(77)[None])


@pytest.mark.parametrize("there", [(SHARED,), (EMBEDDED,), (SHARED, EMBEDDED)])
def test_t5_has_one_table_whatever_name_it_is_stored_under(
    there: tuple[str, ...], t5_config: Path
) -> None:
    weights = tiny.t5_weights(SPEC)
    table = weights.pop(SHARED)
    model = load(weights | dict.fromkeys(there, table), t5_config)
    parameters = dict(model.named_parameters())
    assert torch.equal(model.get_parameter(SHARED), table)
    assert model.get_parameter(EMBEDDED) is model.get_parameter(SHARED)
    assert len(parameters) == len(weights) + 1


def test_two_tables_that_differ_are_refused(t5_config: Path) -> None:
    weights = tiny.t5_weights(SPEC)
    weights[EMBEDDED] = weights[SHARED] + 1
    with pytest.raises(CheckpointError, match=r"encoder\.embed_tokens\.weight"):
        load(weights, t5_config)


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_the_published_encoders_need_no_config(name: str) -> None:
    role, _ = assemble(published(name).meta(), where=name, dtype=torch.bfloat16)
    assert role == name


@pytest.mark.parametrize("weights", [tiny.clip_weights(SPEC), tiny.t5_weights(SPEC)])
def test_other_sizes_without_a_config_are_refused(weights: Weights) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load(weights, None)


def test_a_config_of_another_model_is_refused(t5_config: Path) -> None:
    with pytest.raises(CheckpointError, match="model_type is 't5', not 'clip_text_model'"):
        load(tiny.clip_weights(SPEC), t5_config)


def test_the_text_half_of_a_whole_clip_config_serves(tmp_path: Path) -> None:
    whole = {"model_type": "clip", "text_config": tiny.clip_config(SPEC)}
    load(tiny.clip_weights(SPEC), written(tmp_path / "config.json", whole))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "t5", "d_model": "wide"}'])
def test_a_config_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tiny.t5_weights(SPEC), config)


def test_no_part_of_t5_stays_in_another_type(t5_config: Path) -> None:
    _, model = assemble(tiny.t5_weights(SPEC), where="file", dtype=torch.bfloat16, config=t5_config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
