"""Pictures from the web, from hosts that the server's owner allowed, and from none of the owner's own network."""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from vadapter.base.errors import UserError
from vadapter.serving.api_errors import ApiError, wrong
from vadapter.serving.limits import Limits

_HOPS = 4  # redirects that are followed
_PART = 64 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}


class Fetcher:
    """Gets files from the web.

    The name of a host is looked up once, all its addresses have to be public, and the connection goes to one of these:
    a name that changes its mind between the look and the call gains nothing. Each redirect is checked the same way.

    Args:
        limits: `media_hosts` are the hosts, `body_bytes` and `media_seconds` bound each file.

    Raises:
        UserError: a host is not the name of one.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._hosts = {_name(host) for host in limits.media_hosts}

    def __call__(self, url: str) -> bytes:
        """Returns the file at an address.

        Raises:
            ApiError: the host is not allowed, or the file does not come in time, whole and in size.
        """
        until = time.monotonic() + self._limits.media_seconds
        for _ in range(_HOPS + 1):
            parts = self._allowed(url)
            try:
                found = self._get(parts, until)
            except (OSError, http.client.HTTPException, ValueError) as e:
                raise wrong(f"Fetching from {parts.hostname} failed ({type(e).__name__}).", "messages") from None
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise wrong(f"Fetching from {urlsplit(url).hostname} went on and on: more than {_HOPS} redirects.", "messages")

    def _allowed(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise wrong("An address of the web is not well formed.", "messages") from None
        if parts.scheme not in _PORTS or host not in self._hosts or port not in (None, _PORTS[parts.scheme]):
            raise wrong(
                f"This server fetches nothing from {host[:80] or 'there'}; it fetches from "
                f"{', '.join(sorted(self._hosts))}, at the usual ports.",
                "messages",
                "host_not_allowed",
            )
        if parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
            raise wrong("An address of the web is not well formed.", "messages")
        return parts

    def _get(self, parts: SplitResult, until: float) -> bytes | str:
        """The content of a file, or the address that it is at instead."""
        connection = _Connection(parts, until)
        try:
            connection.request(
                "GET",
                (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                headers={"User-Agent": "vadapter", "Accept": "image/*, video/*", "Accept-Encoding": "identity"},
            )
            answer = connection.getresponse()
            if answer.status in _REDIRECTS and (place := answer.headers.get("location")):
                return place
            if answer.status != 200:
                raise wrong(f"Fetching from {parts.hostname} gave the status {answer.status}.", "messages")
            content = bytearray()
            while part := answer.read1(_PART):
                content += part
                if len(content) > self._limits.body_bytes:
                    raise ApiError(
                        413,
                        f"The file at {parts.hostname} has more than {self._limits.body_bytes} bytes.",
                        None,
                        "messages",
                    )
            if answer.length or connection.severed:
                raise wrong(f"Fetching from {parts.hostname} broke off.", "messages")
            return bytes(content)
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection to a public address of a host, which ends at a time."""

    def __init__(self, parts: SplitResult, until: float):
        assert parts.hostname is not None
        super().__init__(parts.hostname, _PORTS[parts.scheme])
        self._secure, self._until = parts.scheme == "https", until

        self.severed = False
        # A timeout of the socket begins anew with every byte; this one does not.
        self._end = threading.Timer(max(0.0, until - time.monotonic()), self._sever)
        self._end.daemon = True

    def connect(self) -> None:
        address = public_address(self.host, self.port)
        self.sock = socket.create_connection(address, timeout=max(0.001, self._until - time.monotonic()))
        self._raw = self.sock
        if self._secure:
            context = ssl.create_default_context()
            self._raw = self.sock = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
        self._end.start()
        if isinstance(self._raw, ssl.SSLSocket):
            self._raw.do_handshake()

    def close(self) -> None:
        self._end.cancel()
        super().close()

    def _sever(self) -> None:
        """Wakes whoever waits for the host."""
        self.severed = True
        with contextlib.suppress(OSError):
            # That of the class above: an SSL socket's own waits for the other side.
            socket.socket.shutdown(self._raw, socket.SHUT_RDWR)


def public_address(host: str, port: int) -> tuple[str, int]:
    """Returns an address of a host.

    Raises:
        ApiError: one of its addresses is not public.
    """
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(map(is_public, found)):
        raise wrong(f"{host} is an address of a network that is not public; nothing is fetched there.", "messages")
    return found[0], port


def is_public(address: str) -> bool:
    """Whether an address of IP is one of the whole internet, also where it is one of IPv4 within IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def _name(host: str) -> str:
    name = host.strip().lower().rstrip(".")
    if not name or not all(part and part.replace("-", "").isalnum() for part in name.split(".")) or not name.isascii():
        raise UserError(
            f"Expected --allow_media_host to be the name of a host, such as images.example.com; found {host!r}. Give "
            "it without http:// and without a path."
        )
    return name
