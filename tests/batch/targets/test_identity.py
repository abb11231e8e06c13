import pytest

from batch.targets.identity import IdentityError, differences, part_of, refuse_other

ONE = {"teacher": {"weights": {"a": "1"}, "dtype": "float32"}, "version": 1}


def test_fields_that_differ_are_named_with_both_values() -> None:
    other = {"teacher": {"weights": {"a": "2"}, "dtype": "float32"}, "noise": "cpu"}
    assert list(differences(ONE, other)) == [
        "noise is 'cpu' on one side only",
        "teacher.weights.a is '1' and '2'",
        "version is 1 on one side only",
    ]
    assert not list(differences(ONE, ONE))


def test_another_one_is_refused() -> None:
    refuse_other(ONE, ONE, "here")
    with pytest.raises(IdentityError, match="here: version is 1 and 2"):
        refuse_other(ONE, ONE | {"version": 2}, "here")


def test_what_is_wanted_may_be_a_part() -> None:
    wanted = {"teacher": {"dtype": "bfloat16"}, "absent": 1}
    assert part_of(ONE, wanted) == {"teacher": {"dtype": "float32"}}
