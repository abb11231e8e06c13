"""The page of a run."""

from pathlib import Path
from typing import Any

from batch.training.report import losses_of, page
from schemas.training import TrainJob
from tests.batch.test_media import png

EVIL = '<script>alert("x")</script>'


def lineage(**values: Any) -> dict[str, Any]:
    dataset = {
        "address": EVIL, "kind": "cache", "task": "sft", "digest": "abc", "rows": 9,
        "rows_used": 8, "samples": 24, "identity": "def",
        "files": [{"file": f"data/{n}.parquet", "rows": 1, "digest": str(n)} for n in range(60)],
    }  # fmt: skip
    return {"base": {"dit": {EVIL: "0f"}}, "steps": 3, "datasets": [dataset]} | values


def shown(**values: Any) -> str:
    told: dict[str, Any] = {"output_path": EVIL, "model": EVIL, "dataset": EVIL}
    job = TrainJob.parse(told | {"sample_prompts": [EVIL]})
    lines = [
        {"step": n, "loss": 1 / n, "losses": {EVIL: 1 / n}, "rate": 1e-4, "grad_norm": 1.0,
         "samples_per_second": 3.0}
        for n in (1, 2, 3)
    ]  # fmt: skip
    told = {"seconds": 12.0, "skipped": 1} | values
    return page(job, lines, lineage(), told, [(3, EVIL, png())])


def test_a_page_has_all_in_it_and_nothing_that_was_not_meant() -> None:
    text = shown()
    assert EVIL not in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    for told in ("3 of 3 steps", "12 s of all workers together", "1 steps left out", "abc",
                 "9, of which 8 are used", "and 10 more files", "data:image/webp;base64,",
                 "learning_rate"):  # fmt: skip
        assert told in text
    assert "http" not in text.replace("http-equiv", "")


def test_several_datasets_have_curves_beside_that_of_all() -> None:
    lines = [
        {"step": 1, "loss": 1.5, "losses": {"a": 1.0, "b": 2.0}},
        {"step": 2, "loss": None, "losses": {"a": None, "b": 2.0}},
    ]
    assert losses_of(lines) == {"all": [(1, 1.5)], "a": [(1, 1.0)], "b": [(1, 2.0), (2, 2.0)]}


def test_a_run_without_a_number_says_so(tmp_path: Path) -> None:
    del tmp_path
    job = TrainJob.parse({"output_path": "o", "model": "m", "dataset": "d"})
    lines = [{"step": 1, "loss": None, "losses": {}, "rate": 1e-4}]
    text = page(job, lines, lineage(), {"seconds": 0.0, "skipped": 0}, [])
    assert "last loss: no number" in text
    assert "nothing to draw" in text
