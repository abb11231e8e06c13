import io
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from batch.errors import ManifestError, PictureError
from batch.targets.batches import BucketBatches
from batch.training.pictures import PictureRows
from tests.batch.ingest.material import folder, ingest, job, picture, table
from tests.batch.s3 import Server, serving
from tests.batch.test_loras import work as make_pictures

SIZES = ((40, 24), (100, 70), (64, 64), (17, 33), (40, 24))
FITTED = [(16, 32), (48, 64), (64, 64), (32, 16), (16, 32)]  # height, width
MOST = 64 * 64


def opened(address: Path | str, **values: Any) -> PictureRows:
    told = {"height": None, "width": None, "max_pixels": MOST, "step": 16}
    return PictureRows(str(address), **{**told, **values})


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Training shards: pictures of several sizes, one with a mask and further pictures."""
    mask = Image.new("L", (100, 70), 0)
    mask.paste(255, (50, 0, 100, 70))
    out = io.BytesIO()
    mask.save(out, "PNG")
    files: dict[str, bytes | str] = {
        f"{i}.png": picture(*size, seed=i) for i, size in enumerate(SIZES)
    }
    place = folder(tmp_path / "in", files | {"m.png": out.getvalue()})
    lines = [
        {
            "key": f"k{i}", "image": f"{i}.png", "prompt": f"p{i}", "score": i,
            "mask": "m.png" if i == 1 else None, "more": ["0.png", "2.png"] if i == 1 else [],
        }
        for i in range(len(SIZES))
    ]  # fmt: skip
    source = {
        "kind": "table",
        "dataset_base_path": str(place),
        "dataset_metadata_path": str(table(tmp_path / "t.json", lines)),
        "data_file_keys": "image,mask,more",
    }
    ingest(job(tmp_path / "shards", source))
    return tmp_path / "shards" / "data"


def plain(place: Path, columns: dict[str, Any], **options: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), place / "a.parquet", **options)
    return place


def test_rows_of_training_shards_have_their_own_sizes(shards: Path) -> None:
    rows = opened(shards, file_keys=("image", "mask", "more"))
    assert len(rows) == 5
    for number, (height, width) in enumerate(FITTED):
        row = rows[number]
        assert (row.caption, row.key) == (f"p{number}", f"k{number}")
        assert row.pixels.shape == (3, height, width)
        assert (row.pixels.dtype, row.pixels.abs().max() <= 1) == (torch.float32, True)
        assert row.carried == {"score": number}
        assert row.where.endswith((f"row {number}", "row 0"))
    assert {b: n.tolist() for b, n in rows.buckets().items()} == {
        (16, 32): [0, 4], (32, 16): [3], (48, 64): [1], (64, 64): [2],
    }  # fmt: skip
    assert rows.rejects() == []
    mask = rows[1].mask
    assert mask is not None
    assert mask.shape == (1, 48, 64)
    assert mask[0, :, :30].max() == 0
    assert mask[0, :, 34:].min() == 1
    assert rows[0].mask is None
    assert [p.shape[1:] for p in rows[1].pictures["more"]] == [(16, 32), (64, 64)]
    assert rows[0].pictures == {"more": ()}


def test_with_one_size_all_rows_are_in_one_bucket(shards: Path) -> None:
    rows = opened(shards, height=32, width=48, leave_out=("mask", "more"))
    assert {b: len(n) for b, n in rows.buckets().items()} == {(32, 48): 5}
    assert {tuple(rows[i].pixels.shape) for i in range(5)} == {(3, 32, 48)}


def test_batches_are_drawn_of_rows_of_one_size(shards: Path) -> None:
    rows = opened(shards, leave_out=("mask", "more"))
    batches = BucketBatches(rows, batch_size=2, seed=0, drop_small=True)
    assert sorted(batches.at(0).rows) == [0, 4]
    assert rows.row_groups().tolist() == [0, 0, 0, 0, 1]


def test_pictures_of_our_own_are_read_by_their_headers(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images", {"prompt": ["a red circle"], "key": ["a"]})
    rows = opened(tmp_path / "images" / "out" / "data")
    (bucket,) = rows.buckets()
    assert rows[0].pixels.shape == (3, *bucket)
    assert rows[0].carried["num_inference_steps"] > 0


def test_rows_that_cannot_be_read_are_told_of_and_in_no_bucket(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.png").write_bytes(picture(64, 64))
    columns = {
        "picture": ["p.png", "gone.png", None, "p.png", "../out.png"],
        "text": ["a", "b", "c", None, "e"],
        "key": ["k0", "k1", "k2", "k3", "k4"],
    }
    place = plain(tmp_path / "in", columns)
    rows = opened(place, file_keys=("picture",), prompt_column="text")
    assert {b: n.tolist() for b, n in rows.buckets().items()} == {(64, 64): [0]}
    told = {reject.key: (reject.where, reject.reason) for reject in rows.rejects()}
    assert told["k1"] == ("a.parquet row 1", "gone.png: cannot be read: FileNotFoundError")
    assert "not one picture" in told["k2"][1]
    assert "no caption" in told["k3"][1]
    assert "outside the allowed places" in told["k4"][1]
    with pytest.raises(PictureError, match=r"a\.parquet row 1: gone\.png"):
        rows.row(1)
    with pytest.raises(IndexError):
        rows.row(5)


def test_a_picture_that_is_not_what_its_row_says_is_an_error(tmp_path: Path) -> None:
    columns = {
        "image": [picture(64, 64)], "prompt": ["a"], "image_width": [32], "image_height": [32],
    }  # fmt: skip
    rows = opened(plain(tmp_path / "in", columns))
    with pytest.raises(PictureError, match="64 × 64 pixels, and its row says 32 × 32"):
        rows.row(0)


def test_headers_are_read_once(tmp_path: Path) -> None:
    columns = {"image": [picture(64, 64)] * 6, "prompt": ["a"] * 6}
    rows = opened(plain(tmp_path / "in", columns, row_group_size=2))
    first = rows.buckets()
    read = rows._groups.read
    assert {b: n.tolist() for b, n in rows.buckets().items()} == {
        b: n.tolist() for b, n in first.items()
    }
    rows.rejects()
    assert rows._groups.read == read == 3
    assert rows.row_groups().tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"height": 32}, "give both, or neither"),
        ({"height": 30, "width": 32}, "height 30: is no multiple of 16"),
        ({"step": 10}, "step 10"),
        ({"file_keys": ("mask",)}, "the picture's column"),
        ({"file_keys": ("image", "pose")}, "no column 'pose'"),
        ({"prompt_column": "caption"}, "no column 'caption'"),
        ({"leave_out": ("mask",)}, "column 'more' holds files"),
        (
            {"prompt_column": "score", "leave_out": ("mask", "more")},
            "column 'score' is int64; allowed is string",
        ),
        ({"file_keys": ("image", "score"), "leave_out": ("mask", "more")}, "'score' is int64"),
    ],
)
def test_what_does_not_fit_is_said_before_a_row_is_read(
    shards: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ManifestError, match=words):
        opened(shards, **values)


def pixels(rows: PictureRows, number: int) -> np.ndarray:
    return rows[number].pixels.numpy()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_rows_are_the_same_in_copies_and_forks(shards: Path) -> None:
    rows = opened(shards, leave_out=("mask", "more"))
    rows.buckets()
    copy = pickle.loads(pickle.dumps(rows))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        forked = pool.starmap(pixels, [(rows, i) for i in range(5)])
    for number in range(5):
        wanted = pixels(rows, number)
        assert (pixels(copy, number) == wanted).all()
        assert (forked[number] == wanted).all()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def test_rows_are_read_from_a_bucket(shards: Path, server: Server) -> None:
    from batch.storage import Storage

    storage = Storage(server.uri("shards"))
    for file in shards.iterdir():
        storage.replace(file.name, file.read_bytes())
    rows = opened(server.uri("shards"), leave_out=("mask", "more"))
    local = opened(shards, leave_out=("mask", "more"))
    copy = pickle.loads(pickle.dumps(rows))
    for number in range(5):
        assert (pixels(rows, number) == pixels(local, number)).all()
        assert (pixels(copy, number) == pixels(local, number)).all()
