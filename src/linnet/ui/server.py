"""One page from start to end: ask the endpoint who it is, open the release, listen."""

import logging
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypedDict

import uvicorn

from linnet.client import Client
from linnet.errors import RequestRefusedError, ServeError, ServerError
from linnet.stores.connections import Connections
from linnet.ui.app import Page
from linnet.ui.asking import Model, open_model
from linnet.ui.history import History, read_history
from linnet.ui.known import KnownRelease, find, follow, know, require_same_classes
from linnet.ui.settings import PageSettings

logger = logging.getLogger(__name__)

_RETRIES = 2
_STOP_WITHIN_S = 5


class _Places(TypedDict):
    scratch: Path
    connections: Connections


def serve_page(
    server: str,
    settings: PageSettings,
    *,
    connections: Connections,
    model: str | None = None,
    release: str | None = None,
    token: str | None = None,
    authority: str | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page about a model until SIGTERM or SIGINT.

    `release` is a folder, `s3://…` or `model@alias`; without it the release that the server says it
    serves is looked for where releases go, and again after a promotion. `ready` is called with the
    page's address.

    Raises:
        ServerError: or a subclass: the endpoint can't be asked, or takes no pictures.
        SettingsError: the release is of another model than the endpoint's.
        ServeError: the port can't be had.
        LinnetError: the release can't be opened; says why.
    """
    with (
        _client(server, model, token, authority, settings) as client,
        tempfile.TemporaryDirectory(prefix="linnet-ui-") as scratch,
        _listening(settings) as listener,
    ):
        asked = open_model(client)
        places: _Places = {"scratch": Path(scratch), "connections": connections}
        known = _known(asked, release, places)
        page = Page(
            asked,
            settings,
            known=known,
            follow=partial(follow, model=asked, **places) if release is None else _stay,
            history=partial(_history, asked, connections),
        )
        config = uvicorn.Config(
            page.app(),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_STOP_WITHIN_S,
        )
        host, port = listener.getsockname()[:2]
        ready(f"http://{host}:{port}")
        # uvicorn ends well and then raises the signal again: here that is the end, and no error.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _client(
    server: str,
    model: str | None,
    token: str | None,
    authority: str | None,
    settings: PageSettings,
) -> Client:
    try:
        return Client(
            server,
            model=model,
            token=token,
            authority=authority,
            timeout_s=settings.answer_timeout_s,
            retries=_RETRIES,
        )
    except RequestRefusedError as error:
        raise ServerError(f"{error}. If the server can't list its models, give --model") from error


def _known(model: Model, release: str | None, places: _Places) -> KnownRelease | None:
    if release is not None:
        known = know(release, **places)
        require_same_classes(known, model)
        return known
    found = find(model, **places)
    if found is None:
        logger.info(
            "%s is not where releases go, so there are no examples and no report: --release says "
            "where it is",
            model.release,
        )
    return found


def _stay(known: KnownRelease | None) -> KnownRelease | None:
    """Return the release that was asked for, whatever answers."""
    return known


def _history(model: Model, connections: Connections, known: KnownRelease | None) -> History:
    name = model.name if known is None else known.release.model
    run_id = None if known is None else known.provenance.get("tracking_run_id")
    return read_history(name, run_id, connections)


def _listening(settings: PageSettings) -> socket.socket:
    try:
        return socket.create_server(
            (settings.host, settings.port), family=_family(settings.host), backlog=128
        )
    except OSError as error:
        raise ServeError(
            f"can't listen on {settings.host}:{settings.port} ({error}): choose another --port or "
            "--host, or stop what listens there"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
