"""What a verification of targets found, as JSON and as a page."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from PIL import Image
from torch import Tensor

from flux_engine.pictures import to_image

PAGE = Path(__file__).with_name("verdict.html")
THUMB = 160  # pixels
ACROSS = 8
FAULTS_SHOWN = 200


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `facts` are figures, `faults` what is wrong, a line each."""

    name: str
    passed: bool
    facts: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


@dataclass
class Verdict:
    """All findings; it passes if each does."""

    dataset: str
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # what could not be looked at, and why

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


def spread(errors: Sequence[float]) -> dict[str, float]:
    """Figures of relative errors; those that are no numbers are only counted."""
    numbers = [error for error in errors if math.isfinite(error)]
    told: dict[str, float] = {"rows": len(errors)}
    if numbers:
        told |= {"median": median(numbers), "least": min(numbers), "largest": max(numbers)}
    if broken := len(errors) - len(numbers):
        told["no numbers"] = broken
    return told


def judged(name: str, errors: Mapping[str, float], bound: float, ceiling: float) -> Finding:
    """Whether rows, by name, are as near as they should be: their median within the bound, and each
    of them below the ceiling."""
    wrong = [f"{row}: off by {error:.3g}" for row, error in errors.items() if not error <= ceiling]
    middle = median(error if math.isfinite(error) else math.inf for error in errors.values())
    facts = {**spread([*errors.values()]), "bound of the median": bound, "of each": ceiling}
    return Finding(name, middle <= bound and not wrong, facts, tuple(wrong))


def sheet(pictures: Sequence[Tensor]) -> bytes:
    """Pictures side by side, as one JPEG."""
    images = [to_image(picture) for picture in pictures]
    across = min(ACROSS, len(images))
    whole = Image.new("RGB", (across * THUMB, -(-len(images) // across) * THUMB))
    for i, image in enumerate(images):
        small = image.resize((THUMB, THUMB))
        whole.paste(small, (i % across * THUMB, i // across * THUMB))
    out = io.BytesIO()
    whole.save(out, "JPEG", quality=90)
    return out.getvalue()


def page(verdict: Verdict, contact_sheet: bytes, captions: Sequence[str]) -> str:
    """One HTML file without outside parts."""
    rows = [
        f"<tr class='{'ok' if one.passed else 'bad'}'><th>{escape(one.name)}</th>"
        f"<td>{'pass' if one.passed else 'fail'}</td><td>{facts(one)}</td></tr>"
        for one in verdict.findings
    ]
    picture = base64.b64encode(contact_sheet).decode()
    shown = f"<img alt='contact sheet' src='data:image/jpeg;base64,{picture}'>" if picture else ""
    return Template(PAGE.read_text()).substitute(
        title=escape(verdict.dataset),
        state="pass" if verdict.passed else "fail",
        rows=verdict.rows,
        findings="\n".join(rows),
        skipped="".join(f"<li>{escape(one)}</li>" for one in verdict.skipped),
        sheet=shown,
        captions="".join(f"<li>{escape(one)}</li>" for one in captions),
    )


def facts(finding: Finding) -> str:
    told = ", ".join(f"{escape(name)} {number(value)}" for name, value in finding.facts.items())
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in finding.faults[:FAULTS_SHOWN])
    return f"{told}<ul>{faults}</ul>" if faults else told


def number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))
