"""Which files are hashed, and by which step of it."""

from pathlib import Path
from typing import Literal

import pytest

from flux_engine.weights import fingerprint


def hashed(monkeypatch: pytest.MonkeyPatch, step: Literal["digest", "_computed"]) -> list[Path]:
    """The files for which that function of `fingerprint` is called from now on."""
    files: list[Path] = []
    real = getattr(fingerprint, step)

    def counted(file: Path) -> str:
        files.append(file)
        return str(real(file))

    monkeypatch.setattr(fingerprint, step, counted)
    return files
