"""Several nodes: both work, weights come once to each, nodes leave and join."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.batch.doubles import column
from tests.flux_engine.weights.standin_hub import StandInHub, running

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def happened() -> Iterator[tuple[dict[str, Any], Path, StandInHub]]:
    """What the program in `cluster.py` told, its folder, and the hub that it asked."""
    hub = StandInHub("owner/model", {"weights": bytes(3 << 20)}, seconds_a_file=0.5)
    with tempfile.TemporaryDirectory() as name, running(hub):
        program = subprocess.run(
            [sys.executable, "-m", "tests.batch.cluster", name, hub.url],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert program.returncode == 0, program.stderr[-4000:]
        yield json.loads(program.stdout.splitlines()[-1]), Path(name), hub


def test_both_nodes_work_and_weights_come_once_to_each(happened: Any) -> None:
    told, _, hub = happened
    assert told["both"]["done"] == 48
    assert told["both"]["lost"] == 0
    assert set(told["both"]["notes"]) == {"a", "b"}
    assert min(told["both"]["notes"].values()) >= 1  # of 12 shards; a busy machine starts one late
    assert len(hub.transfers("weights")) == 3  # a, b, and c which joined later


def test_a_node_that_falls_is_survived_and_one_that_joins_works(happened: Any) -> None:
    told, folder, _ = happened
    changing = told["changing"]
    assert changing["complete"]
    assert (changing["done"], changing["rejected"]) == (240, 0)
    assert changing["lost"] >= 1
    assert set(changing["notes"]) == {"a", "b", "c"}
    assert changing["notes"]["c"] >= 1
    assert column(folder / "changing" / "out", "key") == [f"k{i:03d}" for i in range(240)]


def test_an_output_that_one_node_does_not_see_is_refused(happened: Any) -> None:
    told, folder, _ = happened
    assert "is not seen on" in told["refused"]
    assert "a folder that all of them share, or on object storage" in told["refused"]
    assert not (folder / "alone" / "out" / "data").exists()
