from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import ManifestError
from batch.manifest import Manifest
from batch.training.columns import check, size_told


def test_files_that_do_not_share_their_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b""], "prompt": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b""], "prompt": ["a"], "n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ManifestError, match=r"b\.parquet: has columns image, prompt, n, and"):
        check(Manifest(str(tmp_path)), ("image",), "prompt", ())


def test_a_column_to_leave_out_has_to_be_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b""], "prompt": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match="no column 'mask'"):
        check(Manifest(str(tmp_path)), ("image",), "prompt", ("mask",))


def test_a_size_is_two_whole_numbers() -> None:
    assert size_told({"image_width": 3, "image_height": 4}) == (3, 4)
    assert size_told({"image_width": None, "image_height": 4}) is None
    assert size_told({}) is None
