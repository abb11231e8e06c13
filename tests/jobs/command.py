"""A job's command in a process of its own."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(
    job: str, config: Path, *words: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """`python -m jobs.JOB`, as the first of a group of processes; None: this one's environment."""
    command = [sys.executable, "-m", f"jobs.{job}", "--config", str(config), *words]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, env=environment,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str, str]:
    """Its exit status, and what it wrote to standard output and error."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
