"""Negative controls are looked at in `test_verification`; here, how rows are asked about."""

from pathlib import Path

import pytest
import torch

from batch.targets.checks import AS_IS, CONTROLS, Checks, Control, Row, levels_of, pick
from flux_engine import FluxEngine, RequestError
from flux_engine.teacher import Taps, Teacher
from tests.batch.stages.test_distill import records, tensor
from tests.batch.targets.made import make
from tests.conftest import ShapesEngine

TAPS = Taps(names=("double_blocks.0.img", "single_blocks.1"), width=64)


@pytest.fixture
def engine(shapes_engine: ShapesEngine) -> FluxEngine:
    return shapes_engine()


@pytest.mark.parametrize("name", ["pair32", "guided", "path", "path32", "velocity", "feature"])
def test_right_rows_come_out_right_and_changed_ones_wrong(
    name: str, engine: FluxEngine, tmp_path: Path
) -> None:
    rows = [Row(record) for record in records(make(tmp_path / "x", name)).values()]
    kind = {"pair32": "pair", "guided": "pair", "path32": "path"}.get(name, name)
    checks = Checks(Teacher(engine, TAPS if kind == "feature" else None), kind)
    right = checks.errors(rows)
    assert set(right) == {row.record.sample_id for row in rows}
    assert max(right.values()) < (1e-2 if kind == "feature" else 1e-3)
    wrong = checks.errors(rows, CONTROLS["another caption"](rows))
    assert sorted(wrong.values())[len(wrong) // 2] > 20 * sorted(right.values())[len(right) // 2]


def test_a_whole_path_is_walked_to_its_end(engine: FluxEngine, tmp_path: Path) -> None:
    rows = [Row(record) for record in records(make(tmp_path / "x", "path32")).values()]
    errors = Checks(Teacher(engine), "path").errors(rows, whole=True)
    assert max(errors.values()) < 1e-4


def test_levels_are_made_again_from_what_a_row_says(tmp_path: Path) -> None:
    for record in records(make(tmp_path / "x", "path32")).values():
        assert tuple(levels_of(record, AS_IS)) == record.sigmas
        bent = levels_of(record, Control(shift=1.5))
        assert (bent[0], bent[-1]) == (1.0, 0.0)
        assert bent[5] > record.sigmas[5]


def test_captions_are_swapped_only_where_there_are_several(tmp_path: Path) -> None:
    rows = [Row(record) for record in records(make(tmp_path / "x", "pair32")).values()]
    control = CONTROLS["another caption"](rows)
    for row in rows:
        assert control.captions[row.record.sample_id] != row.record.caption
    with pytest.raises(ValueError, match="all captions are the same"):
        CONTROLS["another caption"]([rows[0], rows[0]])


def test_a_row_that_cannot_be_asked_about_raises(engine: FluxEngine, tmp_path: Path) -> None:
    record = next(iter(records(make(tmp_path / "x", "velocity")).values()))
    broken = record.model_copy(update={"t": (2.0,) * len(record.t)})
    with pytest.raises(RequestError, match="sigma is 2"):
        Checks(Teacher(engine), "velocity").errors([Row(broken)])


def test_a_pick_is_the_rows_alone() -> None:
    assert pick("ab", 5) == pick("ab", 5)
    assert {pick(f"{n:02x}", 5) for n in range(64)} == set(range(5))


def test_tensors_come_in_float32(tmp_path: Path) -> None:
    record = next(iter(records(make(tmp_path / "x", "pathbf16")).values()))
    assert torch.equal(Row(record).tensor("u"), tensor(record, "u").float())
