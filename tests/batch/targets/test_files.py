"""What a dataset's folder holds, and which folders are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import TargetsError
from batch.targets.files import inventory
from batch.targets.identity import IdentityError
from schemas.targets import METADATA
from tests.batch.targets.made import Targets

Change = Callable[[dict[str, object]], None]


def copied(targets: Targets, tmp_path: Path, name: str = "pair") -> Path:
    return Path(shutil.copytree(targets(name), tmp_path / "copy"))


def relabelled(path: Path, change: Change) -> None:
    """The file with another identity."""
    table = pq.read_table(path)
    identity = json.loads(table.schema.metadata[METADATA.encode()])
    change(identity)
    words = {METADATA: json.dumps(identity)}
    pq.write_table(table.replace_schema_metadata(words), path)


def test_files_stand_in_the_order_of_their_names(targets: Targets) -> None:
    told = inventory(targets("pair"))
    assert [(f.first, f.groups, f.bucket) for f in told.files] == [
        (0, (4,), (64, 64)),
        (4, (3,), (32, 64)),
        (7, (1,), (64, 64)),
    ]
    assert [f.path.name for f in told.files] == sorted(f.path.name for f in told.files)
    assert (told.rows, told.carried) == (8, ("origin",))
    assert told.identity["target"] == {"kind": "pair"}


def test_a_folder_without_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="no target dataset"):
        inventory(tmp_path)


def test_a_dataset_that_is_not_finished_is_refused_unless_that_will_do(
    targets: Targets, tmp_path: Path
) -> None:
    folder = copied(targets, tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(TargetsError, match=r"not finished: it has no manifest\.json"):
        inventory(folder)
    assert inventory(folder, partial=True).rows == 8


@pytest.mark.parametrize("folder", ["data", "text"])
def test_a_file_that_is_missing_is_named(targets: Targets, tmp_path: Path, folder: str) -> None:
    copy = copied(targets, tmp_path)
    victim = min((copy / folder).iterdir())
    victim.unlink()
    with pytest.raises(TargetsError, match=f"{folder}/{victim.name} are missing"):
        inventory(copy)


def test_a_file_that_the_manifest_does_not_know_is_named(targets: Targets, tmp_path: Path) -> None:
    folder = copied(targets, tmp_path)
    shutil.copy(min((folder / "data").iterdir()), folder / "data" / "stray.parquet")
    with pytest.raises(TargetsError, match=r"data/stray\.parquet are not in it"):
        inventory(folder)


def test_files_of_two_teachers_are_refused_and_each_field_named(
    targets: Targets, tmp_path: Path
) -> None:
    def other(identity: dict[str, object]) -> None:
        teacher = identity["teacher"]
        assert isinstance(teacher, dict)
        teacher["dtype"] = "float16"
        identity["device"] = "abacus"

    folder = copied(targets, tmp_path)
    relabelled(sorted((folder / "data").iterdir())[1], other)
    with pytest.raises(
        IdentityError, match=r"device is 'abacus' and .*; teacher\.dtype is 'float16' and 'float32'"
    ):
        inventory(folder)


@pytest.mark.parametrize(("field", "value"), [("version", 3), ("noise", "dice"), ("solver", "rk")])
def test_a_layout_that_is_not_known_is_refused(
    targets: Targets, tmp_path: Path, field: str, value: object
) -> None:
    folder = copied(targets, tmp_path)
    for path in (folder / "data").iterdir():
        relabelled(path, lambda identity: identity.update({field: value}))
    with pytest.raises(IdentityError, match=f"knows no other: {field} is {value!r} and"):
        inventory(folder)


def test_other_parquet_files_are_refused(targets: Targets, tmp_path: Path) -> None:
    folder = copied(targets, tmp_path)
    for path in (folder / "data").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(IdentityError, match=f"its footer has no {METADATA}"):
        inventory(folder)


def test_columns_that_are_missing_are_named(targets: Targets, tmp_path: Path) -> None:
    folder = copied(targets, tmp_path)
    path = min((folder / "data").iterdir())
    pq.write_table(pq.read_table(path).drop_columns(["seed", "latent_dtype"]), path)
    with pytest.raises(TargetsError, match="without the columns seed, latent_dtype"):
        inventory(folder)


def test_a_file_of_several_sizes_is_refused(targets: Targets, tmp_path: Path) -> None:
    folder = copied(targets, tmp_path)
    path = min((folder / "data").iterdir())
    table = pq.read_table(path)
    place = table.schema.get_field_index("height")
    field = table.schema.field(place)
    mixed = table.set_column(place, field, pa.array([64, 64, 32, 64], field.type))
    pq.write_table(mixed, path)
    with pytest.raises(TargetsError, match="2 values of height"):
        inventory(folder)


def test_a_manifest_that_counts_otherwise_is_refused(targets: Targets, tmp_path: Path) -> None:
    folder = copied(targets, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows": 9}))
    with pytest.raises(TargetsError, match="has 8 rows and 9 by its"):
        inventory(folder)


def test_a_torn_file_is_named(targets: Targets, tmp_path: Path) -> None:
    folder = copied(targets, tmp_path)
    path = max((folder / "data").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TargetsError, match=f"{path.name}: is no whole Parquet file"):
        inventory(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(TargetsError, match=r"manifest\.json: is not JSON"):
        inventory(folder)
