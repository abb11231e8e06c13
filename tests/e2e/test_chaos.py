"""Workers and drivers killed and stopped at random: the short form of `benchmarks.chaos`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEEDS = ("--worker-kills", "2", "--driver-kills", "1", "--stops", "1")


@pytest.mark.ray
def test_kills_and_stops_lose_nothing_double_nothing_and_redo_little() -> None:
    words = [sys.executable, "-m", "benchmarks.chaos", "--rows", "800", *DEEDS, "--pause", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert (told["lost"], told["doubled"]) == (0, 0)
    assert (told["rejected"], told["wrongly_rejected"]) == (16, 0)
    assert told["same_bytes"]
    assert (told["unreadable"], told["files_never_opened"]) == (0, 0)
    # four deeds, as dense as the long form's: on a busy machine one of them alone may cost 2 %
    assert told["redone_share"] <= 0.1
    assert set(told["exits"]) <= {"0", "-9", "75"}  # no run gave up
    assert told["exits"]["75"] == told["exits"]["-9"] == 1
