"""Connections to other people's REST APIs: time limits, and what may be sent again."""

from collections.abc import Mapping
from urllib.parse import urlsplit

import urllib3

# What never reached the server is sent again, and what changes nothing.
_RETRY = urllib3.Retry(
    total=3,
    redirect=0,
    backoff_factor=0.5,
    allowed_methods=("GET",),
    status_forcelist=(429, 502, 503, 504),
    raise_on_redirect=False,
    raise_on_status=False,
)


def open_pool(*, read_s: float, headers: Mapping[str, str] | None = None) -> urllib3.PoolManager:
    """Return connections that send these headers and wait so long for an answer."""
    timeout = urllib3.Timeout(connect=5.0, read=read_s)
    return urllib3.PoolManager(timeout=timeout, retries=_RETRY, headers=headers)


def is_address(text: str) -> bool:
    """Return whether this is the URL of an HTTP server."""
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname)
