"""What the README says about reading a dataset, done."""

import re
from pathlib import Path

import pytest

from tests.batch.test_actor import worker_and_shards

README = Path(__file__).parents[1] / "README.md"


def snippets() -> list[str]:
    section = README.read_text().partition("## Reading a dataset")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(found) == 4
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
