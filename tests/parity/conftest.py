"""Toy models on disk."""

from pathlib import Path

import pytest

from tests.parity.cases import SPECS
from tests.parity.tiny import TinySpec, write_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[TinySpec, Path]:
    """A published folder of each toy model."""
    root = tmp_path_factory.mktemp("tiny")
    return {spec: write_folder(root / str(i), spec) for i, spec in enumerate(SPECS)}
