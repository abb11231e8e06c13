"""The command that writes targets for another trainer."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.export_targets import app
from tests.batch.targets.made import Targets


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("form", "changes", "there"),
    [
        ("fastgen", ["rows_per_tar=3"], "64x64/00001.tar"),
        ("dmd2", ["reader=causvid"], "64x64/data.mdb"),
        ("diffsynth", ["table=jsonl"], "metadata.jsonl"),
    ],
)
def test_a_dataset_is_written(
    targets: Targets, tmp_path: Path, form: str, changes: list[str], there: str
) -> None:
    out = tmp_path / "out"
    options = [word for change in changes for word in ("--set", change)]
    code, told, _ = run(str(targets("pair")), str(out), "--format", form, *options)
    assert code == 0
    assert json.loads(told) == {"rows": 8, "format": form, "output": str(out)}
    assert (out / there).is_file()


def test_fastvideo_takes_caches(targets: Targets, tmp_path: Path) -> None:
    code, *_ = run(str(targets("cache")), str(tmp_path / "out"), "--format", "fastvideo")
    assert code == 0
    assert (tmp_path / "out" / "64x64" / "data_00000.parquet").is_file()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--format", "fastvideo"], "pair targets, which fastvideo cannot carry"),
        (["--format", "fastgene"], "'fastgene'"),
        (["--format", "dmd2", "--set", "rows_per_tar=3"], "rows_per_tar: unknown name"),
        (["--format", "dmd2", "--set", "reader"], "write it as a.b=value"),
    ],
)
def test_what_cannot_be_is_refused(
    targets: Targets, tmp_path: Path, words: list[str], why: str
) -> None:
    code, _, told = run(str(targets("pair")), str(tmp_path / "out"), *words)
    assert code == 2
    assert why in told
    assert list(tmp_path.iterdir()) == []


def test_an_output_elsewhere_is_refused(targets: Targets) -> None:
    code, _, told = run(str(targets("pair")), "s3://bucket/out", "--format", "dmd2")
    assert code == 2
    assert "local folders" in told


def test_a_folder_without_targets_is_refused(tmp_path: Path) -> None:
    code, _, told = run(str(tmp_path), str(tmp_path / "out"), "--format", "dmd2")
    assert code == 2
    assert "no target dataset" in told
