"""A table of texts of its own for the tests, and a job with its datasets."""

from collections.abc import Iterator

import pytest

from batch.training.texts import CACHE_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def _texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("texts")))
        yield
