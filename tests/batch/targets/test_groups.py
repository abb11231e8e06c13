"""Row groups: read when they are needed, kept while there is room; they travel without handles."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import TargetsError
from batch.targets.groups import RowGroups


def files(folder: Path) -> list[Path]:
    """Two files of three row groups, of two rows each."""
    paths = []
    for i in range(2):
        table = pa.table({"a": range(6 * i, 6 * i + 6), "b": [b"x" * 1000] * 6, "c": [0] * 6})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=2)
        paths.append(folder / f"{i}.parquet")
    return paths


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    groups = RowGroups(files(tmp_path), ["b", "a"], 10**6)
    assert groups(1, 2).to_pydict() == {"b": [b"x" * 1000] * 2, "a": [10, 11]}


def test_the_latest_stay_as_long_as_there_is_room(tmp_path: Path) -> None:
    groups = RowGroups(files(tmp_path), ["a", "b"], 2 * 2100)
    for place in ((0, 0), (0, 1), (0, 0), (1, 2), (0, 0)):
        groups(*place)
    assert groups.read == 3
    groups(0, 1)
    assert groups.read == 4


def test_one_is_kept_whatever_its_size(tmp_path: Path) -> None:
    groups = RowGroups(files(tmp_path), ["b"], 1)
    groups(0, 0)
    groups(0, 0)
    assert groups.read == 1


def test_a_copy_in_another_process_begins_anew(tmp_path: Path) -> None:
    groups = RowGroups(files(tmp_path), ["a"], 10**6)
    groups(0, 0)
    copy = pickle.loads(pickle.dumps(groups))
    assert (copy.read, copy(0, 0)["a"].to_pylist()) == (0, [0, 1])


def test_a_fork_opens_files_of_its_own(tmp_path: Path) -> None:
    groups = RowGroups(files(tmp_path), ["a"], 10**6)
    groups(0, 0)
    groups._process = os.getpid() + 1  # as a child finds it
    groups(0, 0)
    assert groups.read == 2


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (path, _) = files(tmp_path)
    begin = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + 64] = bytes(64)
    path.write_bytes(data)
    groups = RowGroups([path], ["b"], 10**6)
    groups(0, 0)
    with pytest.raises(TargetsError, match=r"0\.parquet: row group 1: "):
        groups(0, 1)


def test_threads_may_ask_at_once(tmp_path: Path) -> None:
    paths = files(tmp_path)
    for _ in range(20):
        groups = RowGroups(paths, ["a", "b"], 1)  # no room: each is read again

        def first(n: int, groups: RowGroups = groups) -> int:
            file, group = divmod(n % 6, 3)
            return int(groups(file, group)["a"][0].as_py())

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(first, range(48))) == [2 * (n % 6) for n in range(48)]
