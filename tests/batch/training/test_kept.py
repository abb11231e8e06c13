"""A bounded store of values."""

from batch.training.kept import Kept


def test_the_latest_used_values_stay() -> None:
    kept: Kept[str, int] = Kept(room=3)
    for n, name in enumerate("abc"):
        kept.put(name, n, 1)
    assert kept.get("a") == 0
    kept.put("d", 3, 1)
    assert [kept.get(name) for name in "abcd"] == [0, None, 2, 3]


def test_what_is_larger_than_the_room_is_not_kept() -> None:
    kept: Kept[str, int] = Kept(room=3)
    kept.put("a", 0, 1)
    kept.put("large", 1, 4)
    assert kept.get("large") is None
    assert kept.get("a") == 0
