"""An S3-protocol server on loopback, in a process of its own, that fails as it is told.

`PUT /_faults` with JSON sets the faults: `share` of the requests with `method` answer `status`
with `code`; `lost`: such a request is carried out before it fails.
"""

import io
import json
import random
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]

ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
    "<Message>as it was told</Message></Error>"
)


class Faulty:
    """The server behind a gate."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.faults: dict[str, Any] = {"share": 0.0}
        self.dice = random.Random(0)
        self.turn = threading.Lock()  # conditional writes of the real one are atomic
        self.served: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if environ["PATH_INFO"] == "/_faults":
            if method == "PUT":
                length = int(environ["CONTENT_LENGTH"])
                self.faults = json.loads(environ["wsgi.input"].read(length))
                self.served, self.dice = {}, random.Random(0)
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.served).encode()]
        self.count(method)
        if method in self.faults.get("methods", ()) and self.dice.random() < self.faults["share"]:
            self.count("failed")
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if self.faults.get("lost"):
                environ["wsgi.input"] = io.BytesIO(body)
                with self.turn:
                    list(self.app(environ, lambda *_: None))
            data = b"" if method == "HEAD" else ERROR.format(code=self.faults["code"]).encode()
            start(f"{self.faults['status']} Told", [("Content-Type", "application/xml")])
            return [data]
        with self.turn:
            return list(self.app(environ, start))

    def count(self, what: str) -> None:
        self.served[what] = self.served.get(what, 0) + 1


def main() -> None:
    app = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.port, flush=True)
    sys.stdin.close()
    server.serve_forever()


if __name__ == "__main__":
    main()
