import threading
import time

import pytest

from batch.encoders import Encoders


def test_work_is_done_and_its_errors_are_told() -> None:
    encoders = Encoders()
    assert encoders.submit(1, lambda: 7).result() == 7

    def fails() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        encoders.submit(1, fails).result()


def test_whoever_brings_more_than_may_wait_is_held_up() -> None:
    encoders = Encoders(threads=1, waiting_bytes=10)
    gate = threading.Event()
    encoders.submit(6, gate.wait)
    third = threading.Event()

    def bring() -> None:
        encoders.submit(6, gate.wait)
        third.set()

    threading.Thread(target=bring).start()
    time.sleep(0.05)
    assert not third.is_set()
    gate.set()
    assert third.wait(5)


def test_one_that_is_larger_than_all_that_may_wait_goes_alone() -> None:
    assert Encoders(waiting_bytes=10).submit(1000, lambda: 1).result() == 1
