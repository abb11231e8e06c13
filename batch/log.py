"""Events in the log with the fields that they are logged with."""

import logging


class FieldFormatter(logging.Formatter):
    """The event, then the fields it was logged with."""

    PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in vars(record).items() if k not in self.PLAIN}
        told = "".join(f" {name}={value}" for name, value in fields.items())
        return super().format(record) + told


def show_fields(logger: logging.Logger) -> None:
    """Have a process that nobody set up show the fields of a logger's events, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(FieldFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
