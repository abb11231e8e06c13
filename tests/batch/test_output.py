import dataclasses
from pathlib import Path

import pytest

from batch.errors import OutputError
from batch.manifest import Manifest
from batch.output import Output
from tests.batch.doubles import write_manifest


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(str(tmp_path / "out"), "parquet")


def test_another_recipe_is_refused_naming_each_field(output: Output) -> None:
    output.claim({"steps": 4, "size": [1, 2], "same": 0})
    output.claim({"steps": 4, "size": (1, 2), "same": 0})
    with pytest.raises(OutputError, match=r"size was \[1, 2\] and is \[3\]; steps was 4 and is 5"):
        output.claim({"steps": 5, "size": [3], "same": 0})


def test_a_manifest_file_that_changed_is_refused_by_name(tmp_path: Path, output: Output) -> None:
    write_manifest(tmp_path / "m" / "a.parquet", {"prompt": ["a"]})
    output.enrol(Manifest(str(tmp_path / "m")).files)
    output.enrol(Manifest(str(tmp_path / "m")).files)
    write_manifest(tmp_path / "m" / "a.parquet", {"prompt": ["a", "b"]})
    with pytest.raises(OutputError, match=r"a\.parquet: changed since .*it had 1 rows"):
        output.enrol(Manifest(str(tmp_path / "m")).files)


def test_a_file_that_was_added_is_enrolled(tmp_path: Path, output: Output) -> None:
    file = Manifest(str(write_manifest(tmp_path / "a.parquet", {"prompt": ["a"]}))).files[0]
    output.enrol([file])
    output.enrol([file, dataclasses.replace(file, name="b.parquet")])
    assert len(output.storage.names("_run/plan")) == 2


def test_a_planned_file_that_is_gone_is_refused_by_name(tmp_path: Path, output: Output) -> None:
    file = Manifest(str(write_manifest(tmp_path / "a.parquet", {"prompt": ["a"]}))).files[0]
    output.enrol([file, dataclasses.replace(file, name="b.parquet")])
    with pytest.raises(OutputError, match=r"b\.parquet: .* the manifest has it no more"):
        output.enrol([file])


def test_a_check_refuses_what_a_run_would_and_writes_nothing(
    tmp_path: Path, output: Output
) -> None:
    path = write_manifest(tmp_path / "m" / "a.parquet", {"prompt": ["a"]})
    files = Manifest(str(path.parent)).files
    output.check(lambda: {"steps": 4}, files)
    assert not (tmp_path / "out").exists()
    output.claim({"steps": 4})
    output.enrol(files)
    output.check(lambda: {"steps": 4}, files)
    with pytest.raises(OutputError, match="steps was 4 and is 5"):
        output.check(lambda: {"steps": 5}, files)
    write_manifest(path, {"prompt": ["a", "b"]})
    with pytest.raises(OutputError, match=r"a\.parquet: changed since"):
        output.check(lambda: {"steps": 4}, Manifest(str(path.parent)).files)
    with pytest.raises(OutputError, match="cannot be used"):
        Output(str(path / "out"), "parquet").check(dict, files)


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Output(str(tmp_path / "file"), "parquet").claim({})
    with pytest.raises(OutputError, match="output s3x://a/b"):
        Output("s3x://a/b", "parquet")


def test_other_weights_are_refused_by_file(output: Output) -> None:
    output.identify({"weights": {"a": "1", "b": "2"}, "versions": {"torch": "1"}})
    output.identify({"weights": {"a": "1", "b": "2"}, "versions": {"torch": "2"}})
    with pytest.raises(OutputError, match="other weights: b, c changed"):
        output.identify({"weights": {"a": "1", "b": "3", "c": "4"}})


def test_finished_are_the_shards_whose_data_stand(output: Output) -> None:
    output.storage.create(output.data("a"), b"x")
    output.storage.create(output.rejected("b"), b"x")
    output.storage.create("data/notes.txt", b"x")
    assert output.finished() == {"a"}
