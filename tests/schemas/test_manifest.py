import pytest

from schemas.base import SchemaError
from schemas.manifest import COLUMNS, PromptRow
from schemas.sampling import Sampling


def test_every_sampling_value_is_a_column_of_the_same_name() -> None:
    assert set(Sampling.model_fields) <= set(COLUMNS)


def test_a_row_needs_a_prompt() -> None:
    with pytest.raises(SchemaError, match="prompt: is missing"):
        PromptRow.parse({"height": 64})


def test_an_integer_that_came_as_a_float_is_taken() -> None:
    assert PromptRow.parse({"prompt": "a", "height": 64.0}).height == 64


def test_a_broken_number_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"height: .*integer.*64\.5"):
        PromptRow.parse({"prompt": "a", "height": 64.5})


def test_a_seed_that_lost_digits_as_a_float_is_refused() -> None:
    assert PromptRow.parse({"prompt": "a", "seed": 7.0}).seed == 7
    assert PromptRow.parse({"prompt": "a", "seed": 2**60 + 1}).seed == 2**60 + 1
    with pytest.raises(SchemaError, match="seed: 1152921504606846976 came as a float"):
        PromptRow.parse({"prompt": "a", "seed": float(2**60 + 1)})
