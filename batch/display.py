"""How far a run is: a bar on a terminal, lines in a log."""

import logging
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from batch.report import RunReport

logger = logging.getLogger(__name__)

LINES_S = 5.0
BAR_S = 0.5


class Display(Protocol):
    """Told often; shows as often as suits it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None: ...
    def tell(self, report: RunReport, underway: int = 0, *, last: bool = False) -> None:
        """`underway` are finished in shards that are not; `last`: nothing more will come."""


class Lines:
    """One line of the log every few seconds, and one at the end."""

    def __init__(self) -> None:
        self._spoken = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def tell(self, report: RunReport, underway: int = 0, *, last: bool = False) -> None:
        if last or time.monotonic() - self._spoken >= LINES_S:
            self._spoken = time.monotonic()
            logger.info(report.line(time.time(), underway))


class Bar:
    """A bar that moves, below the lines of the log."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            refresh_per_second=4,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._shown = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, report: RunReport, underway: int = 0, *, last: bool = False) -> None:
        if not last and time.monotonic() - self._shown < BAR_S:
            return
        self._shown = time.monotonic()
        words = report.line(time.time(), underway).partition(", ")[2]
        finished = report.finished + underway
        self._progress.update(self._task, completed=finished, total=report.rows, description=words)
        if last:
            self._progress.refresh()


def display() -> Display:
    """What suits standard error."""
    return Bar(Console(stderr=True)) if sys.stderr.isatty() else Lines()
