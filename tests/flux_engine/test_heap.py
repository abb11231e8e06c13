import subprocess
import sys

import pytest

from flux_engine import heap

FAULTS = """
import resource, runpy, sys
heap = runpy.run_path(sys.argv[1])
if "keep" in sys.argv:
    assert heap["keep_freed"]()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    bytearray(b"x") * 2**26
before = faults()
for _ in range(8):
    bytearray(b"x") * 2**26
print(faults() - before)
"""


def faults(*told: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, heap.__file__, *told],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc alone")
def test_memory_that_is_freed_is_had_again_without_the_system() -> None:
    assert faults("keep") <= faults() // 10


def test_where_the_system_does_not_know_how_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    assert not heap.keep_freed()
    monkeypatch.setattr(heap.sys, "platform", "elsewhere")
    assert not heap.keep_freed()
