from typing import Any

from batch.retry import previous, retry_of, turn_of, turns
from batch.shards import Shard

FILE: Any = None
NAME = "m-retry1-00000000-0123456789abcdef"  # of a file that is called m-retry1


def test_a_retry_says_whose_rejects_it_tries() -> None:
    assert turn_of(NAME) == (NAME, 0)
    assert turn_of(f"{NAME}-retry12") == (NAME, 12)
    assert [previous(n) for n in (NAME, f"{NAME}-retry1", f"{NAME}-retry2")] == [
        None,
        NAME,
        f"{NAME}-retry1",
    ]


def test_published_shards_are_told_by_the_planned_one_in_their_order() -> None:
    names = {f"{NAME}-retry{n}" for n in range(1, 12)} | {NAME}
    assert turns(names) == {NAME: [NAME, *(f"{NAME}-retry{n}" for n in range(1, 12))]}


def test_only_what_could_come_out_otherwise_is_tried_again() -> None:
    shard = Shard(NAME, FILE, 0, 8, texts=((0, 0), (1, 0), (1, 1), (2, 0)))
    rejects = [(1, 0, "RowRaised"), (2, 0, "DuplicateKey"), (3, 1, "PictureError")]
    again = retry_of(shard, f"{NAME}-retry1", rejects)
    assert again is not None
    assert (again.name, again.only) == (f"{NAME}-retry2", ((1, 0), (3, 1)))
    assert again.pictures(4) == 2
    assert again.texts == ((1, 0), (1, 1))
    assert retry_of(shard, NAME, [(2, 0, "DuplicateKey"), (4, 0, "SchemaError")]) is None
