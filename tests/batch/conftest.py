"""A Ray of its own for the tests that need one."""

from collections.abc import Iterator

import pytest
import ray

from tests.batch.s3 import CREDENTIALS


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():  # workers have the environment of their start
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=4, include_dashboard=False, configure_logging=False)
        yield
        ray.shutdown()
