from pathlib import Path

import pytest

from batch import parts
from batch.parts import Parts, parts_folder
from batch.storage import Storage
from schemas.records import Record, RejectedRecord, StoredFile, TrainingRecord
from tests.batch.test_sink import record


def bad(key: str) -> RejectedRecord:
    return RejectedRecord(
        key=key, sample=0, manifest_file="m", row=1, error="E", reason="r", prompt=None
    )


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def files(storage: Storage) -> list[str]:
    return storage.names(parts_folder("s"))


def test_what_one_attempt_has_finished_the_next_one_has(storage: Storage) -> None:
    records: list[Record] = [record("a"), bad("b"), record("c", sample=2)]
    first = Parts(storage, "s")
    for number in (4, 0, 2):
        first.add(number, records[number // 2])
    first.flush()
    again = Parts(storage, "s")
    assert [n in again for n in range(6)] == [True, False, True, False, True, False]
    assert (len(again), again.rejected) == (3, 1)
    assert list(again.records([0, 2, 4])) == records
    again.add(5, record("d"))
    assert [r.key for r in again.records([5, 0])] == ["d", "a"]


def test_a_part_is_written_when_it_saves_many_times_what_it_costs(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(parts.time, "monotonic", lambda: now)
    held = Parts(storage, "s")
    held.add(0, record("a"))
    assert files(storage) == []
    now = parts.WORTH * parts.FIRST_COST_S + 0.01
    held.add(1, record("b"))
    assert len(files(storage)) == 1
    held.add(2, record("c"))
    assert len(files(storage)) == 1
    now = 1000.0
    held.rest()
    held.add(3, record("d"))
    assert len(files(storage)) == 1  # the time until rest() was not spent on work


def test_one_slow_write_postpones_no_part(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slow = 0.0, 2.0
    replace = storage.replace

    def slowly(*words: object, **named: object) -> None:
        nonlocal now
        now += slow
        replace(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(parts.time, "monotonic", lambda: now)
    monkeypatch.setattr(storage, "replace", slowly)
    held = Parts(storage, "s")
    for number in range(3):
        now += parts.WORTH * parts.FIRST_COST_S + 0.01
        held.add(number, record("a"))
        slow = 0.0
    assert len(files(storage)) == 3


def test_pictures_do_not_pile_up_in_memory(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "HELD_BYTES", 1000)
    held = Parts(storage, "s")
    for number in range(8):
        held.add(number, record(str(number), size=300))
    assert len(files(storage)) == 2
    assert [r.key for r in held.records(range(8))] == [str(n) for n in range(8)]


def test_a_torn_part_is_no_loss_but_of_its_work(storage: Storage) -> None:
    whole = Parts(storage, "s")
    whole.add(0, record("a"))
    whole.flush()
    (name,) = files(storage)
    data = storage.read(f"{parts_folder('s')}/{name}")
    storage.replace(f"{parts_folder('s')}/torn.arrow", data[: len(data) // 2])
    storage.replace(f"{parts_folder('s')}/empty.arrow", b"")
    again = Parts(storage, "s")
    assert len(again) == 1
    assert [r.key for r in again.records([0])] == ["a"]


def test_parts_go_when_their_shard_is_published(storage: Storage) -> None:
    held = Parts(storage, "s")
    held.add(0, record("a"))
    held.flush()
    held.remove()
    assert files(storage) == []
    Parts(storage, "t").remove()


def test_training_records_come_back_with_all_their_files(storage: Storage) -> None:
    one, other = StoredFile(bytes=b"1", path="a"), StoredFile(bytes=b"", path=None)
    made = TrainingRecord(
        key="k",
        prompt="p",
        image_width=2,
        image_height=3,
        image_sha256="ab",
        image=StoredFile(bytes=b"picture", path="x.png"),
        files={"mask": one, "more": (other, one), "none": (), "null": None},
    )
    held = Parts(storage, "s")
    held.add(0, made)
    held.flush()
    assert list(Parts(storage, "s").records([0])) == [made]
