"""What a run tells of each step: `metrics.jsonl`, a line a step, of which none is told twice."""

import json
import time
from typing import Any

from batch.storage import Storage

FILE = "metrics.jsonl"
EVERY_S = 10.0  # between two times that the file is written while the run goes on


class Metrics:
    """Lines in the order of their steps. The file is replaced as a whole: no reader sees half a
    line, on a disk or in a bucket."""

    def __init__(self, storage: Storage, after: int) -> None:
        """Go on behind the line of step `after`; later ones were of a run that fell."""
        self.storage = storage
        self.lines = [line for line in read_metrics(storage) if line["step"] <= after]
        self._written = time.monotonic()

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if time.monotonic() - self._written >= EVERY_S:
            self.write(durable=False)

    def write(self, *, durable: bool = True) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        self.storage.replace(FILE, text.encode(), durable=durable)
        self._written = time.monotonic()


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """All lines that are there."""
    if not storage.exists(FILE):
        return []
    return [json.loads(line) for line in storage.read(FILE).decode().splitlines()]
