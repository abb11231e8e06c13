"""The command line that all jobs share: --config, --set, and how Ray is started."""

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import ray
import yaml
from rich.table import Table

from batch.errors import JobError
from batch.log import FieldFormatter
from schemas.base import Schema, SchemaError
from schemas.ingest import IngestJob
from schemas.jobs import DistillJob, GenerateJob, Job
from schemas.training import TrainJob

S = TypeVar("S", bound=Schema)

RAY_COPY = "working_dir_files"  # a folder of Ray's that holds the copies
COMPLETE, BROKEN, REFUSED, STOPPED = 0, 1, 2, 75


def load(schema: type[S], config: Path, changes: Sequence[str]) -> S:
    """The job in a YAML file, with `a.b=value` changes laid over it; SchemaError if it is wrong."""
    try:
        values = yaml.safe_load(config.read_text())
    except OSError as error:
        raise SchemaError(f"{config}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SchemaError(f"{config}: is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise SchemaError(f"{config}: is not a mapping of names to values")
    for change in changes:
        set_value(values, change)
    return schema.parse(values, str(config))


def load_job(config: Path, changes: Sequence[str]) -> Job | TrainJob:
    """A job of whichever kind: only distillation has a `target`, only training material a
    `source`, and only training an `output_path`."""
    try:
        values = yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        values = None  # `load` says what is wrong
    kinds: dict[str, type[DistillJob] | type[IngestJob] | type[TrainJob]] = {
        "target": DistillJob,
        "source": IngestJob,
        "output_path": TrainJob,
    }
    for name, schema in kinds.items():
        named = isinstance(values, dict) and name in values
        if named or any(change.startswith((f"{name}.", f"{name}=")) for change in changes):
            return load(schema, config, changes)
    return load(GenerateJob, config, changes)


def set_value(values: Any, change: str) -> None:
    """Lay one `a.b.0.c=value` over nested values; digits are places in a list."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise SchemaError(f"--set {change}: write it as a.b=value")
    *places, last = path.split(".")
    here = values
    for place in places:
        if isinstance(here, dict):
            here = here.setdefault(place, {})
        elif isinstance(here, list) and place.isdigit() and int(place) < len(here):
            here = here[int(place)]
        else:
            raise SchemaError(f"--set {change}: there is nothing at {place!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SchemaError(f"--set {change}: the value is not YAML") from None
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    else:
        raise SchemaError(f"--set {change}: there is nothing at {last!r}")


def check_place(output: str) -> None:
    """SchemaError for an output inside the copy of a folder in which a submitted job runs: nobody
    would find it there, and Ray takes it away."""
    inside = Path(output).absolute() if "://" not in output else Path()
    if RAY_COPY in inside.parts:
        raise SchemaError(
            f"output {output}: lies in Ray's copy of the submitted folder; give an absolute path "
            "that every node sees, or an s3:// address"
        )


def start_logging() -> None:
    """Events with their fields, on standard error."""
    handler = StderrHandler()
    handler.setFormatter(FieldFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what standard error is now: a display puts lines above its bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class Stopped(BaseException):
    """The process was asked to end before there was anything to drain. No `Exception`: what is told
    to whoever happens to catch those would be lost, as it was inside of Ray's start."""


class StopSignal:
    """Whether the process has been asked to end, by SIGTERM (`ray job stop`) or Ctrl-C. Who asks
    twice is not made to wait."""

    def __init__(self) -> None:
        self._draining = False
        self._asked = False
        self.listen()

    def listen(self) -> None:
        """Take the signals; Ray takes them away when it starts."""
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def __call__(self) -> bool:
        self._draining = True
        return self._asked

    def _ask(self, signum: int, _frame: Any) -> None:
        name = signal.Signals(signum).name
        if self._asked or not self._draining:
            raise Stopped(name)
        self._asked = True
        logging.getLogger(__name__).warning(
            "asked to stop: workers keep what is finished", extra={"signal": name}
        )


def start_ray(stop: StopSignal) -> StopSignal:
    """Join the cluster of RAY_ADDRESS, or start one of our own on this machine; JobError if there
    is none at that address."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(configure_logging=False)
        else:
            ray.init(address="local", include_dashboard=False, configure_logging=False)
    except SystemExit as error:  # from Ray's own handler, which it sets while it starts
        if error.code == signal.SIGTERM:
            raise Stopped("SIGTERM") from None
        raise
    except (ConnectionError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise JobError(f"Ray does not start{f' at {address}' if address else ''}: {told}") from None
    stop.listen()
    return stop


def last_line(values: dict[str, Any]) -> None:
    """The machine-readable end of standard output."""
    print(json.dumps(values))
    sys.stdout.flush()


def table(title: str, *heads: str) -> Table:
    """An empty table without lines, with these column heads."""
    made = Table(*heads, title=title, title_justify="left", box=None, show_header=any(heads))
    made.pad_edge = False
    return made
