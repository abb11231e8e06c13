"""A folder appears whole or not at all."""

import json
from pathlib import Path

import pytest

from batch.errors import ExportError
from batch.targets.export.folder import whole, write_index


def test_it_appears_when_it_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with whole(out) as part:
        (part / "a").mkdir()
        (part / "a" / "b").write_bytes(b"c")
        assert not out.exists()
    assert (out / "a" / "b").read_bytes() == b"c"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_of_a_failure_nothing_stays(tmp_path: Path) -> None:
    def broken() -> None:
        with whole(tmp_path / "out") as part:
            (part / "a").write_bytes(b"c")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("late", [False, True])
def test_what_is_there_stays_as_it_is(tmp_path: Path, *, late: bool) -> None:
    out = tmp_path / "out"
    if not late:
        out.mkdir()
    with pytest.raises(ExportError, match=r"out: (exists|has appeared)"), whole(out):
        out.mkdir()
    assert list(tmp_path.iterdir()) == [out]
    assert list(out.iterdir()) == []


def test_an_index_says_what_is_there(tmp_path: Path) -> None:
    write_index(tmp_path, {"rows": 2, "words": "größer"})
    assert json.loads((tmp_path / "index.json").read_text("utf-8")) == {
        "rows": 2,
        "words": "größer",
    }
