import json
import logging
from pathlib import Path
from typing import Any

import pytest

from batch.output import Output
from batch.run import checked_plan
from batch.targets import cost
from batch.targets.spent import COST, publish_cost, spent
from flux_engine.errors import SourceError
from tests.batch.stages.test_distill import work

MANIFEST = {"prompt": ["owl", "bee"], "key": ["a", "b"]}


def made(folder: Path, **reports: float) -> tuple[Any, Output]:
    sampling = {"height": 64, "width": 64, "num_inference_steps": 2}
    job, _ = work(folder, MANIFEST, target={"kind": "pair"}, sampling=sampling)
    output = Output(job.output, job.format)
    for name, seconds in reports.items():
        report = json.dumps({"busy_seconds": seconds}).encode()
        output.storage.replace(f"_run/reports/{name}.json", report)
    return job, output


def test_what_was_used_is_what_lies_there_and_all_runs_seconds(tmp_path: Path) -> None:
    job, output = made(tmp_path, first=1.5, second=2.0)
    used = spent(output)
    for folder, found in (("data", used.data_bytes), ("text", used.text_bytes)):
        assert found == sum(f.stat().st_size for f in (tmp_path / "out" / folder).iterdir()) > 0
    assert used.card_seconds == 3.5
    publish_cost(job, output, checked_plan(job)[1])
    told = json.loads(output.storage.read(COST))
    assert told["used"]["data_bytes"] == used.data_bytes
    assert (told["predicted"]["rows"], told["predicted"]["texts"]) == (2, 2)


def test_a_prediction_that_fails_costs_a_finished_dataset_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job, output = made(tmp_path)

    def gone(*_: object) -> None:
        raise SourceError("the model is not on this machine")

    monkeypatch.setattr(cost, "cost_of", gone)
    with caplog.at_level(logging.WARNING):
        publish_cost(job, output, checked_plan(job)[1])
    told = json.loads(output.storage.read(COST))
    assert told["predicted"] is None
    assert told["used"]["data_bytes"] > 0
    assert "cost was not predicted" in caplog.text
