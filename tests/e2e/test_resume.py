"""A training run that is killed at random moments: the short form of `benchmarks.training`."""

from pathlib import Path

import pytest

from benchmarks.training import resume


@pytest.mark.ray  # one job makes the dataset
@pytest.mark.timeout(1200)
def test_a_run_that_was_killed_ends_with_the_tensors_of_one_that_was_not(tmp_path: Path) -> None:
    told = resume(tmp_path, kills=3)
    assert told["kills"] >= 1
    assert told["tensors"] == 320  # of 64 factors: themselves, moments and a count, an average
    assert told["tensors_that_differ"] == []
