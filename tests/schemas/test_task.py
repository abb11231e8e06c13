"""What a dataset teaches, as it is written down."""

import pytest

from schemas.base import SchemaError
from schemas.task import TrainDataset


@pytest.mark.parametrize(
    ("values", "task", "told"),
    [
        ({"student_steps": 4}, "sft", "student_steps: of no effect with task sft"),
        ({"posterior_mean": True}, "kd", "posterior_mean: of no effect"),
        ({"schedule": "flux"}, "sft:train", "for direct_distill"),
        ({"embedded_guidance": 3.0}, "kd", "embedded_guidance: of no effect with task kd"),
    ],
)
def test_an_option_that_a_task_does_not_know_is_refused(
    values: dict[str, object], task: str, told: str
) -> None:
    dataset = TrainDataset.parse({"path": "a", **values})
    with pytest.raises(ValueError, match=told):
        dataset.refuse_idle(task)  # type: ignore[arg-type]


def test_options_go_with_their_tasks() -> None:
    dataset = TrainDataset(path="a", student_steps=4, schedule="flux")
    assert dataset.refuse_idle("direct_distill:train") == "direct_distill:train"
    assert TrainDataset(path="a", teacher_guidance=3.0).refuse_idle("kd_w") == "kd_w"


def test_ranges_rise_and_addresses_have_no_secrets() -> None:
    with pytest.raises(SchemaError, match="the first is the smaller one"):
        TrainDataset.parse({"path": "a", "embedded_guidance": [4.0, 1.0]})
    with pytest.raises(SchemaError, match="has credentials in it"):
        TrainDataset.parse({"path": "s3://key:word@bucket/a"})
