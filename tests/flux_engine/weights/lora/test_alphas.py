import json
from pathlib import Path

import pytest

from flux_engine.errors import CheckpointError
from flux_engine.weights.lora.alphas import configured


def test_without_any_word_alpha_is_the_rank(tmp_path: Path) -> None:
    assert configured(tmp_path / "a.safetensors", {}).of("x").of("x", 7) == 7.0


def test_each_model_of_a_file_has_its_own_words(tmp_path: Path) -> None:
    words = {"transformer.lora_alpha": 6, "text_encoder.lora_alpha": 2, "text_encoder.r": 4}
    found = configured(tmp_path / "a", {"lora_adapter_metadata": json.dumps(words)})
    assert found.of("transformer.x").of("transformer.x", 3) == 6.0
    assert found.of("text_encoder.x").of("text_encoder.x", 3) == 2.0
    assert found.of("text_encoder.x").scale("text_encoder.x") == 0.5


def test_a_pattern_that_begins_with_a_hat_means_one_module(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"lora_alpha": 6, "alpha_pattern": {"^proj_out": 3, "to_q": 2}})
    )
    found = configured(tmp_path / "adapter_model.safetensors", {})
    for name, alpha in (("proj_out", 3.0), ("single.0.proj_out", 6.0), ("b.0.attn.to_q", 2.0)):
        full = f"base_model.model.{name}"
        assert found.of(full).of(full, 5) == alpha


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_words_that_are_no_json_object_are_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lora_adapter_metadata: is not"):
        configured(tmp_path / "a", {"lora_adapter_metadata": text})
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: is not"):
        configured(tmp_path / "adapter_model.safetensors", {})


@pytest.mark.parametrize(
    "words",
    [
        {"lora_alpha": "x"},
        {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": [1]},
        {"rank_pattern": {"a": None}},
    ],
)
def test_words_that_are_no_configuration_are_named(words: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: is no configuration"):
        configured(tmp_path / "adapter_model.safetensors", {})


def test_a_configuration_is_that_of_the_file_that_peft_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6}))
    assert configured(tmp_path / "adapter_model.safetensors", {}).of("x").of("x", 2) == 6.0
    assert not caplog.records
    assert configured(tmp_path / "owl.safetensors", {}).of("x").of("x", 2) == 2.0
    assert "is not taken" in caplog.text


def test_a_configuration_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{" + " " * 2**20 + "}")
    with pytest.raises(CheckpointError, match="has more than"):
        configured(tmp_path / "adapter_model.safetensors", {})
