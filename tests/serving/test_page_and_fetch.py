"""The page is one file that loads nothing, and what is fetched comes from allowed, public hosts alone."""

import re

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from tests.serving import served
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
