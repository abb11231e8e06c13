"""Pictures from declared web addresses, and from nowhere that such an address may lead by trick.

A host's name is looked up once; the connection goes to that very address, which must be a public
one; redirects are followed only to where the same holds.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from batch.errors import PictureDown, PictureError

LARGEST = 64 * 2**20  # bytes
NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
COMPATIBLE = ipaddress.ip_network("::/96")  # an IPv4 address in its last bits, as in NAT64
TIMEOUT_S = 20.0  # of silence
DEADLINE_S = 120.0
REDIRECTS = 3
BLOCK = 2**16
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that say nothing of what was asked for


class WebRoot:
    """All that lies below one http(s) address."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.top = urlsplit(uri)

    def find(self, address: str) -> str | None:
        url = urlsplit(address)
        return address if self._holds(url) else None

    def _holds(self, url: SplitResult) -> bool:
        if origin(url) != origin(self.top):
            return False
        steps = unquote(url.path).split("/")
        folder = self.top.path.rstrip("/")
        return ".." not in steps and (url.path == folder or url.path.startswith(f"{folder}/"))

    def read(self, place: str, span: tuple[int, int] | None = None) -> bytes:
        """PictureError for an answer other than 200, for too many bytes, for a redirect out of the
        root, and for a host that is not a public one; PictureDown where asking later may help."""
        name, url = shown(place), place
        if span:
            raise PictureError(f"{name}: parts of files are not read from the web")
        for _ in range(REDIRECTS + 1):
            answer, data = fetch(urlsplit(url))
            if answer.status == http.client.OK:
                return data
            if answer.status in BUSY:
                raise PictureDown(f"{name}: answered {answer.status} {answer.reason}")
            if answer.status not in (301, 302, 303, 307, 308):
                raise PictureError(f"{name}: answered {answer.status} {answer.reason}")
            url = urljoin(url, answer.getheader("Location") or "")
            if not self._holds(urlsplit(url)):
                raise PictureError(f"{name}: leads to {shown(url)}, outside {self.uri}")
        raise PictureError(f"{name}: leads on and on")


def shown(address: str) -> str:
    """An address as it may be told: what follows the `?` may be a key, what stands before the `@` a
    password."""
    scheme, mark, rest = address.partition("?")[0].partition("://")
    if not mark:
        return address
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def origin(url: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port; what differs in one of them is another place."""
    return url.scheme, (url.hostname or "").lower(), port_of(url)


def port_of(url: SplitResult) -> int:
    try:
        return url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        return -1


def fetch(url: SplitResult) -> tuple[http.client.HTTPResponse, bytes]:
    """One request, without following anything."""
    address = public_address(url)
    host = url.hostname or ""
    connection = Pinned(host, port_of(url), address, secure=url.scheme == "https")
    try:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("GET", target, headers={"User-Agent": "fluxmill", "Accept": "image/*"})
        data = b""
        with connection.getresponse() as answer:
            if answer.status == http.client.OK:
                data = body(answer, shown(url.geturl()))
    except http.client.InvalidURL as error:
        raise PictureError(f"{shown(url.geturl())}: {type(error).__name__}") from None
    except http.client.HTTPException as error:
        raise PictureDown(f"{shown(url.geturl())}: {type(error).__name__}") from None
    except ValueError as error:  # no such characters
        raise PictureError(f"{shown(url.geturl())}: {type(error).__name__}") from None
    finally:
        connection.close()
    return answer, data


def body(answer: http.client.HTTPResponse, name: str) -> bytes:
    out = bytearray()
    began = time.monotonic()
    while block := answer.read1(BLOCK):
        out += block
        if time.monotonic() - began > DEADLINE_S:
            raise PictureDown(f"{name}: takes longer than {DEADLINE_S:g} s")
        if len(out) > LARGEST:
            raise PictureError(f"{name}: has more than {LARGEST // 2**20} MiB")
    if answer.length:
        raise PictureDown(f"{name}: ended {answer.length} bytes too early")
    return bytes(out)


class Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever the host's name says next time."""

    def __init__(self, host: str, port: int, address: str, *, secure: bool) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self.address, self.secure = address, secure
        self.default_port = 443 if secure else 80  # left out of the Host header

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), TIMEOUT_S)
        if self.secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def public_address(url: SplitResult) -> str:
    """The host's address; PictureError if any that its name has is not a public one."""
    host = url.hostname or ""
    try:
        found = socket.getaddrinfo(host, port_of(url), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        later = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        kind = PictureDown if later else PictureError
        raise kind(f"{shown(url.geturl())}: there is no host {host!r}") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise PictureError(f"{shown(url.geturl())}: {host} is {address}, not a public address")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether it is on the internet: not this machine, a private net, or a cloud's own service."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and any(ip in net for net in (*NAT64, COMPATIBLE)):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast
