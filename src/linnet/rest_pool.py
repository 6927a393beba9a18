"""Connections to other people's REST APIs: time limits, and what may be sent again."""

import json
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3

_T = TypeVar("_T")

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


def parsed(content: bytes, kind: type[_T]) -> _T | None:
    """Return the JSON value that an answer is, None where it is none of this kind."""
    try:
        answer = json.loads(content)
    except ValueError:
        return None
    return answer if isinstance(answer, kind) else None


def cause_of(error: urllib3.exceptions.HTTPError) -> Exception | None:
    """Return what went wrong at last, without the tale of the tries."""
    return error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
