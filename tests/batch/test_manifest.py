from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch import manifest as manifest_module
from batch.errors import ManifestError
from batch.manifest import Manifest, Row, RowReader
from tests.batch.doubles import write_manifest


def rows(manifest: Manifest, first: int = 0, count: int = 1000) -> list[Row]:
    return [
        row for file in manifest.files for row in RowReader(manifest.fs).read(file, first, count)
    ]  # fmt: skip


def test_a_folder_a_glob_and_a_file_are_manifests(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "deep/c.parquet"):
        write_manifest(tmp_path / "m" / name, {"prompt": [name]})
    (tmp_path / "m" / "notes.txt").write_text("no manifest")
    assert [f.name for f in Manifest(str(tmp_path / "m")).files] == [
        "a.parquet",
        "b.parquet",
        "deep/c.parquet",
    ]
    assert [f.name for f in Manifest(f"{tmp_path}/m/[ab].parquet").files] == [
        "a.parquet",
        "b.parquet",
    ]
    assert [f.name for f in Manifest(f"{tmp_path}/m/b.parquet").files] == ["b.parquet"]


def test_pictures_are_looked_for_beside_the_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m" / "a.parquet", {"prompt": ["a"]})
    assert Manifest(f"{tmp_path}/m/a.parquet").root == f"{tmp_path}/m"
    assert Manifest(f"{tmp_path}/m/*.parquet").root == f"{tmp_path}/m"
    assert Manifest(f"file://{tmp_path}/m").root == f"file://{tmp_path}/m"


def test_what_is_missing_or_empty_is_refused_and_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no such file or folder"):
        Manifest(str(tmp_path / "nowhere"))
    write_manifest(tmp_path / "a.parquet", {"prompt": ["a"]})
    with pytest.raises(ManifestError, match=r"no Parquet file matches; .*a\.parquet"):
        Manifest(f"{tmp_path}/z*.parquet")


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("prompt\nfox\n")
    with pytest.raises(ManifestError, match=r"a\.parquet: is not a readable Parquet file"):
        Manifest(str(tmp_path))


def test_an_unknown_column_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"prompt": ["a"], "guidence": [1.0], "licence": ["x"]})
    manifest = Manifest(str(tmp_path))
    with pytest.raises(ManifestError, match=r"a\.parquet: column 'guidence' is not known"):
        manifest.check(passthrough=("licence",))
    with pytest.raises(ManifestError, match=r"column 'licence'.*declared under passthrough"):
        manifest.check(passthrough=("guidence",))
    manifest.check(passthrough=("guidence", "licence"))


def test_a_column_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"promt": ["a"]})
    with pytest.raises(ManifestError, match="did you mean 'prompt'"):
        Manifest(str(tmp_path)).check(())
    write_manifest(tmp_path / "a.parquet", {"prompt": ["a"]})
    with pytest.raises(ManifestError, match="has no column 'licence'"):
        Manifest(str(tmp_path)).check(("licence",))


def test_a_column_of_another_type_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"prompt": ["a"], "height": ["64"]})
    with pytest.raises(ManifestError, match="column 'height' is string; allowed is a number"):
        Manifest(str(tmp_path)).check(())


def test_a_passthrough_column_has_one_type_in_all_files(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"prompt": ["a"], "n": [1]})
    write_manifest(tmp_path / "b.parquet", {"prompt": ["a"], "n": ["1"]})
    with pytest.raises(
        ManifestError, match=r"b\.parquet: column 'n' is string, and in .*a\.parquet"
    ):
        Manifest(str(tmp_path)).check(("n",))


def test_rows_are_parsed_one_by_one_and_a_faulty_one_says_why(tmp_path: Path) -> None:
    write_manifest(
        tmp_path / "a.parquet",
        {"prompt": ["fox", None, "owl"], "height": [64, 64, 65], "key": ["a", "b", "c"]},
    )
    fox, nobody, owl = rows(Manifest(str(tmp_path)))
    assert fox.parsed is not None
    assert fox.parsed.height == 64
    assert nobody.fault == "prompt: is missing"
    assert "height" in (owl.fault or "")
    assert "65" in (owl.fault or "")


def test_a_null_leaves_the_word_to_the_job(tmp_path: Path) -> None:
    write_manifest(
        tmp_path / "a.parquet", {"prompt": ["fox"], "seed": pa.array([None], pa.int64())}
    )
    (row,) = rows(Manifest(str(tmp_path)))
    assert row.parsed is not None
    assert row.parsed.seed is None


def test_a_row_without_a_key_gets_one_that_does_not_change(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_manifest(tmp_path / folder / "a.parquet", {"prompt": ["fox", "fox", "owl"]})
    one, two = (rows(Manifest(str(tmp_path / folder))) for folder in ("one", "two"))
    assert [row.key for row in one] == [row.key for row in two]
    assert len({row.key for row in one}) == 3


def test_a_range_is_read_from_the_row_groups_that_hold_it(tmp_path: Path) -> None:
    write_manifest(
        tmp_path / "a.parquet", {"prompt": [str(i) for i in range(20)]}, row_group_size=3
    )
    some = rows(Manifest(str(tmp_path)), first=5, count=6)
    assert [(row.number, row.values["prompt"]) for row in some] == [
        (i, str(i)) for i in range(5, 11)
    ]


def test_a_row_group_that_workers_would_feel_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manifest_module, "LARGE_GROUP", 2000)
    columns = {"prompt": [f"{i:0100}" for i in range(30)]}
    write_manifest(tmp_path / "small.parquet", columns, row_group_size=10)
    Manifest(str(tmp_path / "small.parquet")).check(())
    assert not caplog.records
    write_manifest(tmp_path / "large.parquet", columns)
    Manifest(str(tmp_path / "large.parquet")).check(())
    (record,) = caplog.records
    assert record.file.endswith("large.parquet")  # type: ignore[attr-defined]


def test_a_file_that_changes_under_a_run_is_not_read(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "a.parquet", {"prompt": ["fox", "owl"]})
    manifest = Manifest(str(path))
    assert len(rows(manifest)) == 2
    for prompts in (["fox", "bee"], ["fox", "owl", "bee"]):
        write_manifest(path, {"prompt": prompts})
        with pytest.raises(ManifestError, match=r"a\.parquet: changed while the run was at it"):
            rows(manifest)


def test_integer_keys_become_strings(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", {"prompt": ["fox"], "key": [7]})
    manifest = Manifest(str(tmp_path))
    manifest.check(())
    assert [row.key for row in rows(manifest)] == ["7"]


def test_a_row_group_is_read_once_for_the_shards_that_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(
        tmp_path / "a.parquet", {"prompt": [str(i) for i in range(12)]}, row_group_size=6
    )
    manifest = Manifest(str(tmp_path))
    reader, (file,) = RowReader(manifest.fs), manifest.files
    read: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i: read.append(i) or real(self, i)
    )
    rows = [row for first in range(0, 12, 2) for row in reader.read(file, first, 2)]
    assert [row.number for row in rows] == list(range(12))
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("loras", "fits"),
    [
        ([[{"path": "a", "scale": 1.0}], None], True),
        ([["a"], []], True),
        ([None, None], True),
        (["a", "b"], False),
        ([[{"path": "a", "strength": 1.0}], None], False),
        ([[1], None], False),
    ],
)
def test_a_column_of_loras_is_a_list(tmp_path: Path, loras: list[Any], fits: bool) -> None:
    write_manifest(tmp_path / "m.parquet", {"prompt": ["owl", "bee"], "loras": loras})
    manifest = Manifest(str(tmp_path / "m.parquet"))
    if fits:
        manifest.check(())
    else:
        with pytest.raises(ManifestError, match=r"column 'loras' is .*; allowed is a list of"):
            manifest.check(())
