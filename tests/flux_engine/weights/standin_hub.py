"""A model hub on this machine: as much of both hubs' HTTP interfaces as a download needs."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SLICE = 1 << 20


@dataclass
class StandInHub:
    """One repository's files; what was asked for; where transfers are cut or held up."""

    model_id: str
    files: dict[str, bytes]
    port: int = 0
    kind: str = "models"  # or datasets
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut_after: dict[str, int] = field(default_factory=dict)  # once, in bytes
    stall_after: dict[str, int] = field(default_factory=dict)  # in bytes, until `go`
    seconds_a_file: float = 0.0
    elsewhere: bool = False  # contents are at another address, as with a delivery network
    told_elsewhere: list[str] = field(default_factory=list)  # who asked there: Authorization
    refuse: int | None = None
    message: str = "no"
    stalled: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def listing(self) -> str:
        return "files" if self.kind == "models" else "tree"

    @property
    def prefix(self) -> str:
        return "" if self.kind == "models" else "/datasets"

    def transfers(self, path: str) -> list[str | None]:
        """The Range of every request for this file's content."""
        return [span for verb, asked, span in self.asked if verb == "GET" and asked == path]


@contextmanager
def running(hub: StandInHub) -> Iterator[StandInHub]:
    class Handler(_Handler):
        standin = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    standin: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.standin
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if hub.refuse:
            self._json(
                {"Code": hub.refuse, "Message": hub.message, "error": hub.message}, hub.refuse
            )
        elif url.path.startswith(f"/api/{hub.kind}/{hub.model_id}"):
            self._listed("huggingface", self._huggingface())
        elif url.path == f"/api/v1/{hub.kind}/{hub.model_id}/repo/{hub.listing}":
            self._listed("modelscope", self._modelscope(query.get("Root", "").strip("/")))
        elif url.path == f"/api/v1/{hub.kind}/{hub.model_id}/repo":
            self._content(query["FilePath"])
        elif url.path.startswith("/elsewhere/"):
            hub.told_elsewhere.append(self.headers.get("Authorization", ""))
            self._content(unquote(url.path).removeprefix("/elsewhere/"))
        elif url.path.startswith(f"{hub.prefix}/{hub.model_id}/resolve/") and hub.elsewhere:
            self._redirect(url.path.split("/resolve/")[1].partition("/")[2])
        elif url.path.startswith(f"{hub.prefix}/{hub.model_id}/resolve/"):
            self._content(unquote(url.path).split("/resolve/")[1].partition("/")[2])
        else:
            self._json({"Code": 404, "Message": "not here", "error": "not here"}, 404)

    def _huggingface(self) -> dict[str, Any]:
        hub = self.standin
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            for path, data in hub.files.items()
        ]
        return {"id": hub.model_id, "sha": COMMIT, "siblings": siblings, "tags": []}

    def _modelscope(self, root: str) -> dict[str, Any]:
        hub = self.standin
        folders = {path.rpartition("/")[0] for path in hub.files} - {""}
        entries: list[dict[str, object]] = [
            {"Path": path, "Type": "tree", "Size": 0} for path in sorted(folders)
        ]
        entries += [
            {
                "Path": path,
                "Type": "blob",
                "Size": len(data),
                "Sha256": hashlib.sha256(data).hexdigest(),
            }
            for path, data in hub.files.items()
        ]
        inside = [entry for entry in entries if str(entry["Path"]).startswith(root)]
        return {"Code": 200, "Success": True, "Data": {"Files": inside}}

    def _listed(self, kind: str, body: dict[str, Any]) -> None:
        self.standin.asked.append(("LIST", kind, None))
        self._json(body, 200)

    def _json(self, body: dict[str, Any], status: int) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _redirect(self, path: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.standin.port}/elsewhere/{path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _content(self, path: str) -> None:
        hub = self.standin
        span = self.headers.get("Range")
        hub.asked.append((self.command, path, span))
        data = hub.files[path]
        first, _, last = (span or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), int(last) + 1 if last else len(data)
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self._send(path, data, start, end)

    def _send(self, path: str, data: bytes, start: int, end: int) -> None:
        hub = self.standin
        time.sleep(hub.seconds_a_file)
        cut = hub.cut_after.pop(path, None)
        stall = hub.stall_after.pop(path, None)
        stop = min(end, cut or stall or end)
        try:
            for at in range(start, stop, SLICE):
                self.wfile.write(data[at : min(at + SLICE, stop)])
            if stall is not None:
                self.wfile.flush()
                hub.stalled.set()
                hub.go.wait()
        except ConnectionError:  # the other side was killed
            pass
        if stop < end:
            self.close_connection = True
