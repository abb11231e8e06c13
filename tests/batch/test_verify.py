from pathlib import Path

import pytest

from batch.errors import OutputError
from batch.receipt import RECEIPTS, Receipt
from batch.run import left_to_do
from batch.verify import verify
from tests.batch.test_actor import worker_and_shards


@pytest.fixture(params=["parquet", "webdataset"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three shards, one of them with a reject."""
    prompts = ["fox", "owl", "bee", "nan"] + ["ant"] * 6
    worker, shards = worker_and_shards(tmp_path, prompts, format=request.param)
    for shard in shards:
        worker(shard)
    return tmp_path / "out"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_an_output_as_it_was_written_is_clean(output: Path) -> None:
    verdict = verify(str(output))
    assert (verdict.files, verdict.faults, verdict.unfinished) == (4, [], 0)
    sizes = [f.stat().st_size for part in ("data", "rejected") for f in (output / part).iterdir()]
    assert verdict.bytes == sum(sizes)


def test_one_flipped_byte_anywhere_is_found(output: Path) -> None:
    for file in (*(output / "data").iterdir(), *(output / "rejected").iterdir()):
        size = file.stat().st_size
        for place in (0, size // 2, size - 1):
            flip(file, place)
            (fault,) = verify(str(output)).faults
            assert fault.startswith(f"{file.parent.name}/{file.name}: sum is ")
            flip(file, place)
    assert verify(str(output)).faults == []


def test_what_is_missing_or_too_much_is_named(output: Path) -> None:
    (rejects,) = (output / "rejected").iterdir()
    data = sorted((output / "data").iterdir())
    kept = rejects.read_bytes()
    rejects.unlink()
    assert verify(str(output)).faults == [f"rejected/{rejects.name}: is missing; it had 1 rows"]
    rejects.write_bytes(kept)
    (output / "rejected" / f"{data[1].stem}.parquet").write_bytes(kept)
    (fault,) = verify(str(output)).faults
    assert "its receipt says that nothing was rejected" in fault
    (output / "rejected" / f"{data[1].stem}.parquet").unlink()
    (output / "data" / "notes.txt").write_text("x")
    for receipt in (output / RECEIPTS).glob(f"{data[2].stem}.*"):
        receipt.unlink()
    assert sorted(verify(str(output)).faults) == [
        f"data/{data[2].name}: has no receipt",
        "data/notes.txt: is no file of a shard",
    ]


def test_a_receipt_before_its_data_is_no_fault(output: Path) -> None:
    receipt = Receipt(
        shard="later", done=1, rejected=0, data_sum="0" * 64, data_bytes=1, rejects_sum=None
    )
    (output / RECEIPTS / receipt.name).write_bytes(receipt.as_json())
    verdict = verify(str(output))
    assert (verdict.faults, verdict.unfinished) == ([], 1)


def test_rows_that_were_tried_again_leave_no_fault(tmp_path: Path) -> None:
    worker, shards = worker_and_shards(tmp_path, ["fox", "raise"])
    worker(shards[0])
    _, todo = left_to_do(worker.job, worker.output, shards, retry_rejected=True)
    worker(todo[0])
    assert verify(str(tmp_path / "out")).faults == []
    first = tmp_path / "out" / "rejected" / f"{shards[0].name}.parquet"
    first.write_bytes(next((tmp_path / "out" / "rejected").iterdir()).read_bytes())
    assert any("is outdated" in fault for fault in verify(str(tmp_path / "out")).faults)


def test_another_folder_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no output of a job"):
        verify(str(tmp_path))
