import json

from flux_engine.weights.lora.metadata import described, in_metadata, peft_config


def test_what_most_modules_share_is_said_once() -> None:
    config = peft_config({"a": 4, "b": 4, "c": 8}, {"a": 2.0, "b": 2.0, "c": 2.0}, dora=False)
    assert (config["r"], config["rank_pattern"]) == (4, {"^c": 8})
    assert (config["lora_alpha"], config["alpha_pattern"]) == (2.0, {})
    assert config["target_modules"] == ["a", "b", "c"]


def test_configurations_of_several_models_are_one_entry() -> None:
    words = in_metadata({"transformer.": {"r": 4, "peft_type": "LORA"}, "text_encoder.": {"r": 2}})
    assert json.loads(words["lora_adapter_metadata"]) == {"transformer.r": 4, "text_encoder.r": 2}


def test_words_of_the_source_stand_unless_they_are_of_the_content() -> None:
    source = {"ss_seed": "7", "ss_network_dim": "99", "note": "private"}
    words = described(source, rank=4, alpha=2.0, content="ab", guidance=False)
    assert (words["ss_seed"], words["ss_network_dim"]) == ("7", "4")
    assert "note" not in words
    assert words["modelspec.architecture"] == "flux-1-schnell/lora"
    assert all(isinstance(value, str) for value in words.values())
