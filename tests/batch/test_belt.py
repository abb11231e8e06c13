import threading
from concurrent.futures import ThreadPoolExecutor

from batch.belt import Belt


def test_things_come_off_in_their_order_and_few_are_on_it() -> None:
    belt, put = Belt[int](2), []

    def bring() -> None:
        for i in range(50):
            assert belt.put(i)
            put.append(i)
        belt.close()

    with ThreadPoolExecutor(1) as pool:
        bringing = pool.submit(bring)
        taken = []
        for thing in belt:
            assert len(put) <= len(taken) + 4  # two on the belt, one in each hand
            taken.append(thing)
        bringing.result()
    assert taken == list(range(50))


def test_who_brings_is_let_go_when_nobody_takes() -> None:
    belt = Belt[int](1)
    assert belt.put(1)
    told = []
    waiting = threading.Thread(target=lambda: told.append(belt.put(2)))
    waiting.start()
    belt.leave()
    waiting.join(5)
    assert told == [False]
    assert belt.put(3) is False
