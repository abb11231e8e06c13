import io
import logging
import os
import pty

import pytest
from rich.console import Console

from batch import display as room
from batch.display import Bar, Lines, display
from batch.report import RunReport


def test_a_log_gets_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    report = RunReport(rows=10, done=4, rejected=1)
    with Lines() as lines:
        for _ in range(100):
            lines.tell(report)
        assert caplog.messages == []
        monkeypatch.setattr(room, "LINES_S", 0.0)
        lines.tell(report, 2)
        monkeypatch.setattr(room, "LINES_S", 100.0)
        lines.tell(report, last=True)
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "7 of 10 rows",
        "5 of 10 rows",
    ]


def test_a_terminal_gets_a_bar() -> None:
    near, far = pty.openpty()
    with os.fdopen(far, "w") as terminal:
        with Bar(Console(file=terminal, width=100)) as bar:
            bar.tell(RunReport(rows=10, done=4, rejected=1), 2)
            bar.tell(RunReport(rows=10, done=9, rejected=1), last=True)
        terminal.flush()
        written = os.read(near, 65536).decode()
    os.close(near)
    assert "10/10" in written
    assert "1 rejected" in written
    assert "\x1b[" in written  # it moves


def test_what_is_no_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(display(), Lines)
