"""Other words for a training job."""

import pytest

from schemas.older_words import in_our_words


def test_lists_may_be_written_with_commas() -> None:
    told = in_our_words({"extra_inputs": "seed, rand_device,", "model_paths": "a.safetensors"})
    assert told == {"extra_inputs": ["seed", "rand_device"], "model_paths": ["a.safetensors"]}


def test_no_layers_named_is_the_automatic_mode() -> None:
    assert in_our_words({"lora_target_modules": ""}) == {"lora_target_modules": ["auto"]}


def test_a_single_dataset_may_be_a_path() -> None:
    assert in_our_words({"dataset": "rows"}) == {"datasets": [{"path": "rows"}]}
    assert in_our_words({"datasets": ["a", {"path": "b"}]})["datasets"][0] == {"path": "a"}


def test_what_another_command_does_is_said() -> None:
    with pytest.raises(ValueError, match=r"jobs\.distill"):
        in_our_words({"datasets": [{"path": "a", "task": "sft:data_process"}]})
