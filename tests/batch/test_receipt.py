import hashlib
import io

from batch.receipt import Receipt, by_shard, sum_of


def receipt(shard: str, done: int, data: bytes) -> Receipt:
    total = hashlib.sha256(data).hexdigest()
    return Receipt(
        shard=shard,
        done=done,
        rejected=1,
        data_sum=total,
        data_bytes=len(data),
        rejects_sum=None,
    )


def test_a_receipt_comes_back_as_it_went_in_and_its_name_tells_the_counts() -> None:
    one = receipt("a-00000000-0123456789abcdef", 3, b"x")
    assert Receipt.from_json(one.as_json()) == one
    (told,) = by_shard([one.name])[one.shard]
    assert (told.name, told.done, told.rejected, told.rejects) == (one.name, 3, 1, one.rejects)


def test_makers_that_differ_leave_a_receipt_each_and_other_files_are_no_receipts() -> None:
    one, two = receipt("a", 3, b"x"), receipt("a", 3, b"y")
    found = by_shard([one.name, two.name, "notes.txt", "a.1.json"])
    assert [counted.name for counted in found["a"]] == [one.name, two.name]
    assert list(found) == ["a"]


def test_a_sum_is_that_of_the_whole_file() -> None:
    data = b"x" * (3 * 2**20 + 1)
    assert sum_of(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()
