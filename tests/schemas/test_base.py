from typing import Literal

import pytest
from pydantic import Field, ValidationError

from schemas.base import Schema, SchemaError


class Wheel(Schema):
    size: int = Field(default=3, ge=1)


class Car(Schema):
    name: str
    front: Wheel = Wheel()
    spare: tuple[Wheel, ...] | Literal["none"] = "none"


def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_name() -> None:
    with pytest.raises(
        SchemaError, match=r"car\.yaml: front\.sise: unknown name; did you mean 'size'"
    ):
        Car.parse({"name": "a", "front": {"sise": 4}}, "car.yaml")


def test_an_unknown_key_without_a_near_name_lists_what_is_known() -> None:
    with pytest.raises(SchemaError, match="known are front, name, spare"):
        Car.parse({"name": "a", "zzz": 1})


def test_an_unknown_key_inside_a_list_finds_the_names_of_its_model() -> None:
    with pytest.raises(SchemaError, match="did you mean 'size'"):
        Car.parse({"name": "a", "spare": [{"siz": 4}]})


def test_a_value_out_of_range_is_told_with_the_value_and_the_range() -> None:
    with pytest.raises(SchemaError, match=r"front\.size: .*greater than or equal to 1 \(found 0\)"):
        Car.parse({"name": "a", "front": {"size": 0}})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SchemaError) as caught:
        Car.parse({"nam": "a", "front": {"size": "x"}})
    lines = str(caught.value).splitlines()
    assert {line.split(":")[0] for line in lines} == {"name", "nam", "front.size"}


def test_a_model_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Car(name="a").name = "b"  # type: ignore[misc]
