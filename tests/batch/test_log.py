"""Events with their fields."""

import logging

import pytest

from batch.log import FieldFormatter, show_fields


def test_fields_stand_behind_the_event() -> None:
    record = logging.makeLogRecord({"msg": "checkpoint", "step": 4, "levelname": "INFO"})
    assert FieldFormatter("%(levelname)s %(message)s").format(record) == "INFO checkpoint step=4"


def test_a_logger_shows_its_fields_once(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("a.logger.of.this.test")
    for _ in range(2):
        show_fields(logger)
    logger.getChild("child").info("stopped", extra={"step": 7})
    told = capsys.readouterr().err
    assert told.count("stopped step=7") == 1
