"""A bucket on loopback for tests."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Server:
    """A running server; addresses carry its port, so that any process finds it."""

    port: int

    def uri(self, path: str) -> str:
        return f"s3://bucket/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def fail(self, **faults: Any) -> None:
        """Fail so from now on; nothing given ends it."""
        data = json.dumps({"share": 0.0} | faults).encode()
        self._ask(urllib.request.Request(self._faults, data, method="PUT"))

    def served(self) -> dict[str, int]:
        """Requests since the last `fail`, by method, and how many have failed."""
        told: dict[str, int] = json.loads(self._ask(urllib.request.Request(self._faults)))
        return told

    @property
    def _faults(self) -> str:
        return f"http://127.0.0.1:{self.port}/_faults"

    def _ask(self, request: urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


@contextmanager
def serving() -> Iterator[Server]:
    """A server with an empty bucket; the environment has credentials that it takes."""
    words = [sys.executable, "-m", "tests.batch.s3_server"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
            text=True,
        )
        try:
            assert process.stdout is not None
            server = Server(int(process.stdout.readline()))
            boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.port}").create_bucket(
                Bucket="bucket"
            )
            yield server
        finally:
            process.kill()
            process.communicate()
