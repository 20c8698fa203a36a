"""The page is one file that loads nothing, and what is fetched comes from allowed, public hosts alone."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from tests.serving import served
from vadapter.serving import fetch
from vadapter.serving.api_errors import ApiError
from vadapter.serving.fetch import Fetcher, is_public
from vadapter.serving.limits import Limits


def test_the_page_is_open_and_loads_nothing(tmp_path):
    with served.serving({"tiny": served.load(tmp_path)}, key="secret", page=True) as client:
        status, page, headers = client.send("GET", "/")
        assert status == 200 and headers["content-security-policy"].startswith("default-src 'none'")
        assert not re.findall(r'(?:src|href)="(?!data:)', page.decode()) and "://" not in page.decode()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"]
    + ["64:ff9b::7f00:1", "2002:7f00:1::"],
)
def test_an_address_of_an_own_network_is_not_public(address):
    assert not is_public(address)
    assert is_public("8.8.8.8") and is_public("2606:4700::1111")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://other.example/a.png", "fetches nothing from other.example"),
        ("http://localhost:22/", "at the usual ports"),
        ("http://a@localhost/", "not well formed"),
        ("http://[::1/", "not well formed"),
        ("http://localhost/a.png", "not public"),  # the host is allowed, and lies within
    ],
)
def test_nothing_is_fetched_from_elsewhere(url, said):
    with pytest.raises(ApiError, match=said):
        Fetcher(Limits(media_hosts=("localhost",)))(url)


class Host(BaseHTTPRequestHandler):
    """A host of the web that is not always what it should be."""

    def do_GET(self):
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/drips":  # a header that never ends
            with contextlib.suppress(OSError):
                while not self.server.stopped.wait(0.01):
                    self.wfile.write(b"H")
        else:
            self.send_response(200)
            self.send_header("Content-Length", "9" if self.path == "/cut" else "4")
            self.end_headers()
            self.wfile.write(b"here")

    def log_message(self, format, *args):
        """Says nothing."""


@pytest.fixture
def web(monkeypatch):
    """All allowed hosts are this one."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        server.stopped = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(fetch, "public_address", lambda host, port: server.server_address)
        yield Fetcher(Limits(media_hosts=("pictures.example", "more.example"), media_seconds=0.3))
        server.stopped.set()
        server.shutdown()
        thread.join()


def test_redirects_stay_among_the_allowed_hosts(web):
    assert web("http://pictures.example/to/http://more.example/a.png") == b"here"
    with pytest.raises(ApiError, match="fetches nothing from other.example"):
        web("http://pictures.example/to/http://other.example/a.png")
    with pytest.raises(ApiError, match="fetches nothing from 169.254.169.254"):
        web("http://pictures.example/to/http://169.254.169.254/computeMetadata")
    with pytest.raises(ApiError, match="usual ports"):
        web("http://pictures.example/to/http://pictures.example:22/")
    with pytest.raises(ApiError, match="fetches nothing from there"):
        web("http://pictures.example/to/file:///etc/passwd")
    with pytest.raises(ApiError, match="more than 4 redirects"):
        web("http://pictures.example" + "/to/http://pictures.example" * 6)


def test_a_host_that_drips_is_left_in_its_time(web):
    with pytest.raises(ApiError, match="Fetching from pictures.example failed"):
        web("http://pictures.example/drips")


def test_a_file_that_is_cut_is_no_file(web):
    with pytest.raises(ApiError, match="broke off"):
        web("http://pictures.example/cut")
