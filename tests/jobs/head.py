"""A Ray head of the tests' own, with a token, a home and ports that nobody else has."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
READY_S = 90.0


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@dataclass(frozen=True)
class Head:
    """What a client needs to know of it."""

    address: str
    environment: Mapping[str, str]

    def run(self, *words: str, **changes: str) -> "subprocess.CompletedProcess[str]":
        """A command of a user of this cluster, in the project's folder."""
        return subprocess.run(
            words,
            cwd=ROOT,
            env=dict(self.environment) | changes,
            capture_output=True,
            text=True,
            timeout=180,
        )


@contextmanager
def running_head() -> Iterator[Head]:
    """A head with two CPUs; ended by its process id."""
    with tempfile.TemporaryDirectory(prefix="fm") as folder:  # short: sockets lie below it
        home = Path(folder) / "home"
        home.mkdir()
        port, dashboard = free_port(), free_port()
        address = f"http://127.0.0.1:{dashboard}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": address,
        }
        words = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
        words += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}/r"]
        words += ["--object-store-memory=80000000", f"--ray-client-server-port={free_port()}"]
        words += [f"--dashboard-agent-listen-port={free_port()}"]
        with (Path(folder) / "head.log").open("w+") as log:
            head = subprocess.Popen(
                words, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                wait_for(address, environment["RAY_AUTH_TOKEN"], head, Path(log.name))
                yield Head(address, environment)
            finally:
                head.send_signal(signal.SIGTERM)  # it ends its processes
                try:
                    head.wait(
                        90
                    )  # where ranks have trained an actor of Ray's stays, and is waited for
                finally:
                    os.killpg(head.pid, signal.SIGKILL) if head.poll() is None else None


def wait_for(address: str, token: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
