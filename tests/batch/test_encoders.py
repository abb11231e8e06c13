import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from batch.encoders import Encoders
from flux_engine.pictures import to_image
from tests.flux_engine.asking import picture

PICTURE = 3 * 64 * 64 * 4  # bytes


def bits(image: Image.Image) -> bytes:
    return np.asarray(image).tobytes()


def test_work_is_done_and_its_errors_are_told() -> None:
    encoders = Encoders()
    assert encoders.submit(picture(0), bits).result() == bits(to_image(picture(0)))

    def fails(_: Image.Image) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        encoders.submit(picture(0), fails).result()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_are_slower_than_the_card_do_not_hold_it_up(threads: int) -> None:
    encoders = Encoders(threads, waiting_bytes=3 * PICTURE)
    gate = threading.Event()

    def slow(image: Image.Image) -> bytes:
        gate.wait()  # until everything has been brought: no bringing may wait for it
        return bits(image)

    pictures = [picture(i) * 1.5 for i in range(12)]
    futures = [encoders.submit(one, slow) for one in pictures]
    assert not any(future.done() for future in futures)
    assert encoders.spilled == 9
    gate.set()
    for one, future in zip(pictures, futures, strict=True):
        assert future.result(30) == bits(to_image(one))
    assert encoders.submit(picture(0), bits).result()
    assert encoders.spilled == 9


def test_one_that_is_larger_than_all_that_may_wait_is_worked_on() -> None:
    assert Encoders(waiting_bytes=10).submit(picture(0), bits).result()


def test_where_the_disk_is_full_pictures_wait_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def write(self, _: bytes) -> None:
            raise OSError("no space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    encoders, gate = Encoders(1, waiting_bytes=PICTURE), threading.Event()

    def slow(_: Image.Image) -> bool:
        return gate.wait()

    pixels: list[Tensor] = [torch.zeros(3, 64, 64)] * 3
    futures = [encoders.submit(one, slow) for one in pixels]
    gate.set()
    assert all(future.result(30) for future in futures)
    assert encoders.spilled == 0
    assert "no space left" in vars(caplog.records[0])["why"]
