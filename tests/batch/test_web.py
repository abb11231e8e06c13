import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from batch import web
from batch.errors import PictureDown, PictureError
from batch.web import WebRoot, is_public


class Site(http.server.BaseHTTPRequestHandler):
    """A picture, and some tricks."""

    hosts: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        match self.path.partition("?")[0]:
            case "/pics/a.png":
                self.answer(200, b"picture " + self.path.encode())
            case "/pics/moved.png":
                self.answer(302, b"", "/pics/a.png")
            case "/pics/round.png":
                self.answer(302, b"", "/pics/round.png")
            case "/pics/out.png":
                self.answer(302, b"", "/private/a.png")
            case "/pics/cloud.png":
                self.answer(302, b"", "http://169.254.169.254/latest/meta-data")
            case "/pics/large.png":
                self.answer(200, b"x" * 5000)
            case "/pics/short.png":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"cut")
            case "/pics/busy.png":
                self.answer(503, b"")
            case _:
                self.answer(404, b"")

    def answer(self, status: int, data: bytes, to: str = "") -> None:
        self.send_response(status)
        if to:
            self.send_header("Location", to)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(port: int, monkeypatch: pytest.MonkeyPatch) -> WebRoot:
    """A site whose host counts as public; its name is known nowhere else."""
    real = socket.getaddrinfo

    def lookup(host: str, *rest: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "pictures.test" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(web, "is_public", lambda a: a == "127.0.0.1" or is_public(a))
    return WebRoot(f"http://pictures.test:{port}/pics")


def read(root: WebRoot, name: str) -> bytes:
    place = root.find(f"{root.uri}/{name}")
    assert place is not None
    return root.read(place)


def test_a_picture_below_the_root_is_fetched(root: WebRoot, port: int) -> None:
    assert read(root, "a.png?v=1&w=2") == b"picture /pics/a.png?v=1&w=2"
    assert Site.hosts[-1] == f"pictures.test:{port}"
    assert read(root, "moved.png") == b"picture /pics/a.png"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none.png?sig=hush", r"none\.png: answered 404"),
        ("out.png", "/private/a.png, outside"),
        ("cloud.png", "leads to http://169.254.169.254/latest/meta-data, outside"),
        ("round.png", "leads on and on"),
        ("short.png", "ended 97 bytes too early"),
        ("füchse.png", "UnicodeEncodeError"),
        ("a b.png", "InvalidURL"),
    ],
)
def test_a_picture_that_cannot_be_fetched_says_why(root: WebRoot, name: str, why: str) -> None:
    with pytest.raises(PictureError, match=why):
        read(root, name)


def test_what_may_be_had_later_is_told_from_what_may_not(root: WebRoot) -> None:
    for name, later in (("busy.png", True), ("none.png", False)):
        with pytest.raises(PictureError) as caught:
            read(root, name)
        assert isinstance(caught.value, PictureDown) is later


def test_an_answer_is_cut_off_where_it_gets_too_large(
    root: WebRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "LARGEST", 2**12)
    with pytest.raises(PictureError, match="has more than"):
        read(root, "large.png")


@pytest.mark.parametrize(
    "address",
    [
        "https://pictures.test/picsel/a.png",
        "https://pictures.test/pics/../private/a.png",
        "https://pictures.test/pics/%2e%2e/private/a.png",
        "http://pictures.test/pics/a.png",
        "https://pictures.test:444/pics/a.png",
        "https://pictures.test:99999/pics/a.png",
        "https://pictures.test@evil.test/pics/a.png",
        "https://evil.test/pics/a.png",
        "pics/a.png",
    ],
)
def test_what_is_not_below_the_root_is_not_in_it(address: str) -> None:
    assert WebRoot("https://pictures.test/pics").find(address) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "10.0.0.7", "169.254.169.254"])
def test_a_host_that_is_not_public_is_not_asked(host: str, port: int) -> None:
    before = len(Site.hosts)
    with pytest.raises(PictureError, match="not a public address"):
        read(WebRoot(f"http://{host}:{port}/pics"), "a.png")
    assert len(Site.hosts) == before


def test_a_name_that_means_another_host_next_time_is_of_no_use(
    root: WebRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    known = socket.getaddrinfo

    def lookup(host: str, *rest: Any, **options: Any) -> Any:
        asked.append(host)
        return known(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    read(root, "a.png")
    assert asked == ["pictures.test", "127.0.0.1"]  # the name once, then the address it had


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::127.0.0.1", False),
        ("::1", False),
        ("64:ff9b::169.254.169.254", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b:1::10.0.0.1", False),
        ("fec0::1", False),
        ("2002:0a00:0001::", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
