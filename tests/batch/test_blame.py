from typing import Any

import pytest

from batch.blame import DEATHS, Blame
from batch.errors import RunFailed
from batch.shards import Shard

FILE: Any = None
SHARD = Shard("a", FILE, 10, 4)


def test_rows_are_tried_alone_when_two_workers_ended_at_them() -> None:
    blame = Blame(retries=3)
    assert blame.strike(SHARD, [10, 11]) == []
    assert blame.strike(SHARD, [11, 12]) == [11]
    assert blame.strike(SHARD, [11, 12]) == [12]  # 11 has been tried


def test_a_shard_in_whose_hands_many_workers_died_is_tried_row_by_row_and_then_given_up() -> None:
    blame = Blame(retries=1)
    assert [blame.death(SHARD) for _ in range(DEATHS - 1)] == [[]] * (DEATHS - 1)
    assert blame.death(SHARD) == [10, 11, 12, 13]
    assert blame.death(SHARD) == []
    with pytest.raises(RunFailed, match="none of its rows does that alone"):
        blame.death(SHARD)


def test_what_no_row_is_to_blame_for_is_borne_as_often_as_the_job_says() -> None:
    blame = Blame(retries=2)
    for _ in range(2):
        blame.failure(SHARD, OSError("disk"))
    with pytest.raises(RunFailed, match="shard a failed 3 times, last with: disk"):
        blame.failure(SHARD, OSError("disk"))


def test_a_row_that_did_it_alone_is_refused_with_the_reason() -> None:
    blame = Blame(retries=2)
    blame.refuse(SHARD, 12, "WorkerDied: alone")
    assert blame.refused == {"a": {12: "WorkerDied: alone"}}
