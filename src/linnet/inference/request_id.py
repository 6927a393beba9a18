"""The id that follows a request from the gateway through answer, log and prediction log.

Gateways such as Envoy send `x-request-id`; what traces sends `traceparent`.
Source: https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Mapping

_TRACE = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_LONGEST = 128


def given_id(headers: Mapping[str, str]) -> str | None:
    """Return the id that a request came with: `x-request-id`, else its trace's.

    None where there is none that can safely be logged and sent back. Names are in lower case.
    """
    return safe_id(headers.get("x-request-id", "")) or trace_id(headers)


def safe_id(text: str) -> str | None:
    """Return an id of a caller's making if it is short and printable."""
    return text if 0 < len(text) <= _LONGEST and text.isascii() and text.isprintable() else None


def trace_id(headers: Mapping[str, str]) -> str | None:
    """Return the id of the trace that a request is part of."""
    found = _TRACE.fullmatch(headers.get("traceparent", ""))
    return found[1] if found else None
