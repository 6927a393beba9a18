"""Pictures by URL, for those who turn it on: only from listed hosts, never into one's own network.

The host's name is resolved once, every address it has is checked, and the connection goes to a
checked one, so that a name can't point elsewhere a moment later. Redirects are not followed.
Source: OWASP's cheat sheet on server-side request forgery.
"""

import asyncio
import http.client
import ipaddress
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from linnet.errors import RequestError
from linnet.inference.settings import ServeSettings

_PIECE = 64 << 10
_UNICAST = ipaddress.ip_network("2000::/3")
_THREADS = 4


class Fetcher:
    """Fetches pictures as the settings allow."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch")
        self._tls = ssl.create_default_context() if settings.fetch_hosts else None

    async def fetch(self, url: str) -> bytes:
        """Return what is at a URL.

        Raises:
            RequestError: the URL is not allowed, or nothing usable is there.
        """
        if not self._settings.fetch_hosts:
            raise RequestError(
                "pictures by URL are off: send the picture itself, or start the server with "
                "--fetch-host",
                status=403,
            )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._fetch, url)

    def _fetch(self, url: str) -> bytes:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise RequestError(f"{url[:200]!r} is no URL ({error})") from error
        self._check(url, parts.scheme, host, port, has_user=parts.username is not None)
        port = port or (443 if parts.scheme == "https" else 80)
        address = self._address(host, port)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        until = time.monotonic() + self._settings.fetch_timeout_s
        connection = _Pinned(
            host, port, address, self._tls if parts.scheme == "https" else None, until
        )
        try:
            connection.request("GET", target, headers={"Accept": "image/*"})
            return self._read(connection, url, until)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RequestError(
                f"{url[:200]} can't be fetched ({type(error).__name__}): check it, or send the "
                "picture itself"
            ) from error
        finally:
            connection.close()

    def _check(self, url: str, scheme: str, host: str, port: int | None, *, has_user: bool) -> None:
        schemes = ("https", "http") if self._settings.fetch_private else ("https",)
        if scheme not in schemes or not host or has_user or not url.isascii() or " " in url:
            raise RequestError(
                f"{url[:200]!r} is not allowed: expected {' or '.join(schemes)}://host/path",
                status=403,
            )
        if port not in (None, 80, 443) and not self._settings.fetch_private:
            raise RequestError(f"port {port} is not allowed: use 443", status=403)
        if not any(_matches(host, allowed) for allowed in self._settings.fetch_hosts):
            raise RequestError(
                f"the host {host[:200]!r} is not on this server's list: send the picture itself",
                status=403,
            )

    def _address(self, host: str, port: int) -> str:
        """Return an address of the host, after checking all of them."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise RequestError(f"the host {host[:200]!r} is not known: check the URL") from error
        addresses = [str(entry[4][0]) for entry in found]
        if not self._settings.fetch_private and not all(map(_is_public, addresses)):
            raise RequestError(f"the host {host[:200]!r} is not a public one", status=403)
        return addresses[0]

    def _read(self, connection: http.client.HTTPConnection, url: str, until: float) -> bytes:
        with connection.getresponse() as response:
            if response.status != 200:
                raise RequestError(
                    f"{url[:200]} answers {response.status}, expected 200 (redirects are not "
                    "followed): give the picture's own address"
                )
            most = self._settings.max_body_bytes
            read = bytearray()
            while piece := response.read1(_PIECE):
                read += piece
                if len(read) > most:
                    raise RequestError(f"{url[:200]} has more than {most} bytes", status=413)
                if time.monotonic() > until:
                    raise TimeoutError
            return bytes(read)


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever the host's name resolves to by now."""

    def __init__(
        self, host: str, port: int, address: str, tls: ssl.SSLContext | None, until: float
    ) -> None:
        super().__init__(host, port)
        self._address = address
        self._tls = tls
        self._until = until

    def connect(self) -> None:
        """Connect to the address, and check the certificate against the name."""
        left = max(0.1, self._until - time.monotonic())
        sock: Any = socket.create_connection((self._address, self.port), timeout=left)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self.host)
        self.sock = sock


def _matches(host: str, allowed: str) -> bool:
    host, allowed = host.lower().rstrip("."), allowed.lower()
    return host.endswith(allowed) if allowed.startswith(".") else host == allowed


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        # Not the ranges that lead to IPv4 by translation: there, any address can hide in one.
        return found.is_global and found in _UNICAST and found.sixtofour is None
    return found.is_global and not found.is_multicast
