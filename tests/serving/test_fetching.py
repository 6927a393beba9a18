"""Pictures by URL: from listed hosts only, and never from one's own network."""

import asyncio
import http.server
import threading
from collections.abc import Iterator

import pytest

from linnet.errors import RequestError
from linnet.inference import fetching
from linnet.inference.fetching import Fetcher
from linnet.inference.settings import ServeSettings


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
            return
        body = bytes(5000 if self.path == "/picture" else 50_000)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(url: str, **settings: object) -> bytes:
    wanted = ServeSettings.parse({"max_body_bytes": 10_000, **settings})
    return asyncio.run(Fetcher(wanted).fetch(url))


OURS = {"fetch_hosts": ["127.0.0.1"], "fetch_private": True}


def test_a_listed_host_is_fetched_from(site: str) -> None:
    assert fetch(f"{site}/picture", **OURS) == bytes(5000)


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [("/moved", 400, "redirects are not followed"), ("/large", 413, "more than 10000 bytes")],
)
def test_redirects_and_large_files_are_refused(
    path: str, status: int, says: str, site: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        fetch(site + path, **OURS)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.jpg",
        "https://example.org.evil.test/a.jpg",
        "https://evil.test/a.jpg",
        "https://evilexample.org/a.jpg",
        "https://user@example.org/a.jpg",
        "https://example.org@evil.test/a.jpg",
        "https://example.org:22/a.jpg",
        "https://example.org:x/a.jpg",
        "https://[::1",
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
        "//example.org/a.jpg",
        "https://example.org/a\r\nX: y",
        "",
    ],
)
def test_what_is_not_listed_is_refused_before_anything_is_asked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(RequestError):
        fetch(url, fetch_hosts=["example.org"])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1%1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "fd00::1",
        "224.0.0.1",
        "100.64.0.1",
        "64:ff9b::7f00:1",
    ],
)
def test_a_name_that_leads_into_the_own_network_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [(0, 0, 0, "", ("93.184.216.34", 443)), (0, 0, 0, "", (address, 443))]
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(RequestError, match="not a public one") as caught:
        fetch("https://example.org/a.jpg", fetch_hosts=[".example.org", "example.org"])
    assert caught.value.status == 403


def test_without_a_list_everything_is_refused() -> None:
    with pytest.raises(RequestError, match="--fetch-host") as caught:
        fetch("https://example.org/a.jpg")
    assert caught.value.status == 403
