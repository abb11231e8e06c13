"""How a run learns, as it is written down."""

from typing import Any

import pytest

from schemas.base import Schema, SchemaError
from schemas.learning import Broken, Loss, OptimizerConfig, RateSchedule, Timesteps, changed


@pytest.mark.parametrize(
    ("schema", "values", "told"),
    [
        (Timesteps, {"kind": "diffsynth", "mean": 1.0}, "mean: of no effect with timesteps"),
        (Timesteps, {"kind": "uniform", "spread": 2.0}, "it uses shift"),
        (Loss, {"kind": "mse", "delta": 2.0}, "delta: of no effect with loss mse"),
        (RateSchedule, {"floor": 0.5}, "floor: of no effect with lr_schedule constant"),
        (OptimizerConfig, {"kind": "adam"}, "'adam' is no optimizer; known are adamw"),
        (OptimizerConfig, {"options": {"lr": 1}}, "options has lr: that is said elsewhere"),
        (Broken, {"skip": -1}, "skip: "),
    ],
)
def test_what_would_have_no_effect_is_refused(
    schema: type[Schema], values: dict[str, Any], told: str
) -> None:
    with pytest.raises(SchemaError, match=told):
        schema.parse(values)


def test_what_is_written_down_can_be_read_again() -> None:
    for one in (Timesteps(kind="diffsynth"), Loss(), RateSchedule(), OptimizerConfig()):
        assert type(one).parse(one.model_dump(mode="json")) == one


def test_options_are_those_of_the_kind() -> None:
    assert Timesteps(kind="flux_shift", mean=0.5).options == {"mean": 0.5, "spread": 1.0}
    assert Timesteps(kind="diffsynth").options == {}


def test_a_dotted_path_names_an_optimizer() -> None:
    assert OptimizerConfig(kind="torch.optim.SGD").kind == "torch.optim.SGD"


def test_only_what_differs_counts_as_said() -> None:
    assert changed(Timesteps(mean=0.0, spread=2.0)) == {"spread"}
