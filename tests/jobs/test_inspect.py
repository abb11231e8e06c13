import json
from pathlib import Path

from typer.testing import CliRunner

from jobs.inspect import app
from tests.batch.test_actor import worker_and_shards


def test_an_output_is_told_in_words_and_in_json(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox [bold]", "raise"])
    worker.output.claim(worker.job.recipe())
    worker(shard)
    out = str(tmp_path / "out")
    told = CliRunner().invoke(app, [out])
    assert told.exit_code == 0, told.output
    for words in ("pictures", "of 16×16", "RowRaised", "cannot paint this", "fox [bold]"):
        assert words in told.stdout
    as_json = CliRunner().invoke(app, [out, "--json", "--samples", "0"])
    assert json.loads(as_json.stdout)["reasons"] == {"RowRaised": 1}


def test_another_folder_ends_with_2(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, [str(tmp_path)])
    assert refused.exit_code == 2
    assert "is no output of a job" in refused.stderr
