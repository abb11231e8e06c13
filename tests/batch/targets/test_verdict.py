import io

import torch
from PIL import Image

from batch.targets.verdict import Finding, Verdict, page, sheet, spread


def test_one_finding_that_fails_fails_all() -> None:
    verdict = Verdict("here", 3, [Finding("a", True, {"median": 0.00012345})])
    assert verdict.passed
    verdict.findings.append(Finding("b & c", False, {}, ("row 3: <wrong>",)))
    assert not verdict.passed
    assert verdict.as_json()["passed"] is False
    text = page(verdict, b"", ["a <caption>"])
    assert "here: fail" in text
    assert "median 0.000123" in text
    assert "row 3: &lt;wrong&gt;" in text
    assert "a &lt;caption&gt;" in text


def test_a_sheet_has_all_pictures() -> None:
    made = Image.open(io.BytesIO(sheet([torch.zeros(3, 64, 64)] * 9)))
    assert made.size == (8 * 160, 2 * 160)


def test_a_spread_is_of_all_errors() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"rows": 3, "median": 2.0, "least": 1.0, "largest": 3.0}
