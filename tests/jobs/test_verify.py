import json
from pathlib import Path

from typer.testing import CliRunner

from jobs.verify import app
from tests.batch.test_actor import worker_and_shards
from tests.batch.test_verify import flip


def test_a_flipped_byte_is_a_line_and_ends_with_1(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "owl"])
    worker.output.claim(worker.job.recipe())
    worker(shard)
    out = str(tmp_path / "out")
    clean = CliRunner().invoke(app, [out])
    assert clean.exit_code == 0
    told = json.loads(clean.stdout.splitlines()[-1])
    assert (told["files"], told["faults"]) == (1, 0)
    (file,) = (tmp_path / "out" / "data").iterdir()
    flip(file, 300)
    broken = CliRunner().invoke(app, [out])
    assert broken.exit_code == 1
    assert f"data/{file.name}: sum is " in broken.stderr
    assert json.loads(broken.stdout.splitlines()[-1])["faults"] == 1


def test_another_folder_ends_with_2(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, [str(tmp_path)])
    assert refused.exit_code == 2
    assert "is no output of a job" in refused.stderr
