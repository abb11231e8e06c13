"""A run's figures for Prometheus, through Ray's own exporter; `docs/grafana.json` draws them."""

import time
from typing import Protocol

from ray.util.metrics import Gauge

from batch.report import RunReport

NAMES = {
    "fluxmill_rows": ("pictures of the job by status", ("output", "status")),
    "fluxmill_rows_per_second": ("pictures finished a second since the run began", ("output",)),
    "fluxmill_workers": ("workers by state", ("output", "state")),
    "fluxmill_card_busy": ("share of the time in which loaded cards worked", ("output",)),
}


class Working(Protocol):
    """What a pool tells of itself."""

    lost: int

    @property
    def loaded(self) -> int: ...
    @property
    def underway(self) -> int: ...
    @property
    def busy(self) -> float: ...


class Telemetry:
    """Gauges of one run, set by its driver a few times a minute; workers send nothing."""

    def __init__(self, output: str) -> None:
        self.output = output
        self._gauges = {name: Gauge(name, words, tags) for name, (words, tags) in NAMES.items()}
        self._last = time.monotonic()
        self._busy = 0.0

    def update(self, report: RunReport, pool: Working) -> None:
        """Set every gauge from these."""
        now = time.monotonic()
        seconds, self._last = max(now - self._last, 1e-9), now
        busy, self._busy = pool.busy - self._busy, pool.busy
        for status, count in (
            ("wanted", report.rows),
            ("done", report.done),
            ("rejected", report.rejected),
            ("underway", pool.underway),
        ):
            self._set("fluxmill_rows", count, status=status)
        self._set("fluxmill_rows_per_second", report.rate(time.time(), pool.underway))
        self._set("fluxmill_workers", pool.loaded, state="loaded")
        self._set("fluxmill_workers", pool.lost, state="lost")
        self._set("fluxmill_card_busy", min(busy / seconds / max(pool.loaded, 1), 1.0))

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(value, {"output": self.output} | tags)
