import subprocess
import sys

PROGRAM = """
from pathlib import Path
import pyarrow as pa
from batch.memory import give_back

def private():
    fields = Path("/proc/self/smaps_rollup").read_text().split()
    return int(fields[fields.index("Private_Dirty:") + 1]) // 1024

give_back()
before = private()
held = [b"x" * 3_000_000 for _ in range(60)] + [pa.py_buffer(b"y" * 3_000_000) for _ in range(20)]
small = [b"z" * 1000 for _ in range(1000)]  # above the large ones
table = pa.table({"a": [b"x" * 3_000_000] * 20})
most = private()
del held, table
give_back()
print(before, most, private())
"""


def test_what_was_freed_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True)
    before, most, after = map(int, done.stdout.split())
    assert most > before + 200  # MB
    assert after < before + 60
