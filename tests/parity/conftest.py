"""Toy models on disk, and PyTorch on one thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.parity.cases import SPECS
from tests.parity.tiny import TinySpec, write_folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[TinySpec, Path]:
    """A published folder of each toy model."""
    root = tmp_path_factory.mktemp("tiny")
    return {spec: write_folder(root / str(i), spec) for i, spec in enumerate(SPECS)}
