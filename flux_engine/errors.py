"""What can go wrong in the engine; the class decides what a caller does.

EngineError
├── RequestError      the row's own fault: it is rejected, its neighbours go on
│   └── NumbersBroke  the model answered with NaN or infinity
├── TrainingError     a sample that cannot be learned from as it is asked: the message names it
├── CheckpointError   files that do not hold what the model needs: the run stops
├── SourceError       files that are not there, or cannot be fetched: the run stops
└── SettingError      an option that this engine or model cannot honour: the run stops
"""

from collections.abc import Iterable


class EngineError(Exception):
    """Anything that this engine refuses, with a message for whoever asked."""


class RequestError(EngineError):
    """One request cannot be served; others are not affected."""


class NumbersBroke(RequestError):
    """The picture came out as NaN or infinity."""


class TrainingError(EngineError):
    """A sample lacks what an objective needs, or cannot go with its neighbours."""


class SourceError(EngineError):
    """Model files are missing, ambiguous or out of reach."""


class SettingError(EngineError):
    """A setting that cannot be honoured, named with its value and what is allowed."""


class CheckpointError(EngineError):
    """Tensors that are missing, unexpected or misshapen, all of them listed."""

    def __init__(
        self,
        where: str,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshapen: Iterable[str] = (),
        reason: str = "",
    ) -> None:
        self.where = where
        self.missing = tuple(sorted(missing))
        self.unexpected = tuple(sorted(unexpected))
        self.misshapen = tuple(sorted(misshapen))
        parts = [reason] if reason else []
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("misshapen", self.misshapen),
        ):
            if names:
                parts.append(f"{len(names)} {title}: {', '.join(names)}")
        super().__init__(f"{where}: {'; '.join(parts)}" if parts else where)
