"""PyTorch on one thread, and the bundled model, loaded once for each way of loading it.

Imports nothing but the engine: a machine that is lent for its GPU has no other libraries.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flux_engine import FluxEngine, load_engine
from flux_engine.weights.fingerprint import CACHE_VARIABLE

if TYPE_CHECKING:
    from tests.batch.targets.made import Targets

ShapesEngine = Callable[..., FluxEngine]
MARK = "mark.gpu"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where the tests that need a GPU are asked for alone, no other module is imported."""
    if config.option.markexpr != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any(MARK in file.read_text(encoding="utf-8") for file in files) else True


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _digests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What large files' digests were is not remembered beyond the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("digests")))
        yield


@pytest.fixture(scope="session")
def shapes_engine() -> ShapesEngine:
    """The bundled model on the CPU, in float32 and in batches of two unless told otherwise."""

    @cache
    def loaded(**options: Any) -> FluxEngine:
        small = {"text_batch": 2, "micro_batch": 2, "decode_batch": 2}
        return load_engine(device="cpu", **{"torch_dtype": torch.float32, **small, **options})

    return loaded


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> "Targets":
    """Small datasets of targets, by the names in `made.TARGETS`."""
    from tests.batch.targets.made import Targets

    return Targets(tmp_path_factory.mktemp("targets"))
