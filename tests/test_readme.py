"""What the README says about reading datasets and targets, done."""

import re
from pathlib import Path

import pytest

from batch.targets.export.fastgen import export
from batch.targets.layout import COLUMNS
from schemas.exports import FastGenExport
from tests.batch.ingest.material import folder, ingest, job, picture
from tests.batch.targets.made import Targets
from tests.batch.test_actor import worker_and_shards

README = Path(__file__).parents[1] / "README.md"


def snippets(title: str = "Reading a dataset", count: int = 4) -> list[str]:
    section = README.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(found) == count
    return found


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", range(4))
def test_each_way_to_read_a_dataset_reads_it(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = snippets()[place]
    kind = "webdataset" if "webdataset" in code else "parquet"
    (tmp_path / "out").mkdir()
    worker, shards = worker_and_shards(tmp_path, ["fox", "owl", "nan", "bee", "ant"], format=kind)
    for shard in shards:
        worker(shard)
    (tmp_path / "out").rename(tmp_path / "dataset")
    (tmp_path / "out").mkdir()
    (tmp_path / "dataset").rename(tmp_path / "out" / "foxes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    exec(compile(code, "README", "exec"), {})
    printed = capsys.readouterr().out
    for words in re.findall(r"#: (.*)", code):
        assert words in printed


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("title", "count", "place"),
    [("Reading targets", 2, 0), ("Reading targets", 2, 1), ("Exporting targets", 1, 0)],
)
def test_targets_are_read_as_it_says(
    title: str,
    count: int,
    place: int,
    targets: Targets,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = snippets(title, count)[place]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "path").symlink_to(targets("path"))
    monkeypatch.chdir(tmp_path)
    if "tars" in code:
        export("out/path", Path("out/tars"), FastGenExport())
    exec(compile(code, "README", "exec"), {})
    printed = capsys.readouterr().out
    for words in re.findall(r"#: (.*)", code):
        assert words in printed


def test_training_shards_are_read_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = snippets("Training shards", 1)
    files: dict[str, bytes | str] = {}
    for i in range(3):
        files |= {f"{i}.png": picture(70, 50, seed=i), f"{i}.txt": "a red circle"}
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    ingest(job(tmp_path / "out" / "shards", source))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {})
    printed = capsys.readouterr().out
    for words in re.findall(r"#: (.*)", code):
        assert words in printed


def test_the_table_of_target_columns_names_them_all() -> None:
    section = README.read_text().partition("\n## Reading targets\n")[2].partition("\n## ")[0]
    missing = [name for name in COLUMNS if f"`{name}`" not in section]
    assert missing == []
