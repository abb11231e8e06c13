import gc
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

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


def test_what_is_not_done_yet_is_not_waited_for_and_comes_when_it_is() -> None:
    belt, futures = Belt[int](1), [Future[None]() for _ in range(5)]
    for i, future in enumerate(futures):
        assert belt.put_when(future, i)  # more than there is place for, and nobody takes
    belt.close()

    def finish() -> None:
        for i in (3, 0, 4, 1, 2):
            futures[i].set_result(None)

    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(finish)
        assert list(belt) == [3, 0, 4, 1, 2]
        finishing.result()


def test_what_is_done_when_nobody_takes_any_more_is_dropped() -> None:
    belt, future = Belt[int](1), Future[None]()
    assert belt.put_when(future, 1)
    belt.leave()
    assert not belt.put_when(Future(), 2)
    future.set_result(None)


class Picture:
    """Something large."""


def test_what_came_off_goes_without_the_garbage_collector() -> None:
    belt, future = Belt[tuple[str, Future[Picture]]](1), Future[Picture]()
    assert belt.put_when(future, ("row", future))
    belt.close()
    future.set_result(Picture())
    (thing,) = belt
    gone = weakref.ref(thing[1].result())
    gc.disable()
    try:
        del thing, future
        assert gone() is None
    finally:
        gc.enable()
