"""The page as an ASGI application: small answers in JSON, everything else static or a template.

Nothing here is kept: a picture goes to the model and is forgotten.
"""

import asyncio
import base64
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from linnet.errors import (
    LinnetError,
    RequestError,
    RequestRefusedError,
    ServerBusyError,
    ServerError,
    ServerUnreachableError,
)
from linnet.evaluation.metrics import label
from linnet.ui.asking import Model, Said
from linnet.ui.headers import REPORT_POLICY, SecureHeaders
from linnet.ui.history import History
from linnet.ui.known import KnownRelease, thumbnail
from linnet.ui.settings import PageSettings
from linnet.ui.shares import Shares
from linnet.ui.turns import Turns
from linnet.ui.why import find_out

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_WAIT_FOR_HISTORY_S = 2.0
_MIB = 1 << 20


class Page:
    """The page about one model.

    `known` and `history` are what else there is to tell; `follow` returns what is known of the
    release that answers now, given the one before.
    """

    def __init__(
        self,
        model: Model,
        settings: PageSettings,
        *,
        known: KnownRelease | None = None,
        follow: Callable[[KnownRelease | None], KnownRelease | None] = lambda known: known,
        history: Callable[[KnownRelease | None], History] = lambda known: History(),
    ) -> None:
        self._model = model
        self._settings = settings
        self._known = known
        self._follow = follow
        self._read_history = history
        self._history = History(missing="it is being read: load the page again in some seconds")
        self._looked = -math.inf
        self._looking: threading.Thread | None = None
        self._shares = Shares(settings.answers_counted)
        self._answering = Turns(settings.pictures_at_once, waiting=settings.pictures_waiting)
        self._explaining = Turns(1, waiting=settings.explanations_waiting)

    def app(self) -> Starlette:
        """Return the application."""
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=self._settings.hosts())
        shown = [
            Route("/", self.ask),
            Route("/model", self.about),
            Route("/report", self.report),
            Route("/answers", self.answer, methods=["POST"]),
            Route("/explanations", self.explain, methods=["POST"]),
            Route("/examples/{version}/{number:int}", self.example),
            Route("/examples/{version}/{number:int}/small", self.small_example),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ]
        # Probes ask by the pod's address.
        return Starlette(
            routes=[Route("/health", self.health), Mount("/", routes=shown, middleware=[hosts])],
            middleware=[Middleware(SecureHeaders)],
            exception_handlers={LinnetError: _said_wrong, 404: self.not_found},
            lifespan=self._warming,
        )

    async def ask(self, request: Request) -> Response:
        """Show where pictures go and answers appear."""
        self._look_again()
        return self._html("ask.html.j2", here="ask")

    async def about(self, request: Request) -> Response:
        """Show what is known of the model."""
        self._look_again()
        if self._looking is not None:
            await run_in_threadpool(self._looking.join, _WAIT_FOR_HISTORY_S)
        return self._html("model.html.j2", here="model", history=self._history)

    async def report(self, request: Request) -> Response:
        """Return the release's whole report, which is a page without scripts."""
        page = None if self._known is None else self._known.page
        if page is None:
            return await self.not_found(request, LookupError())
        return FileResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})

    async def answer(self, request: Request) -> Response:
        """Answer the picture that is the body."""
        async with self._answering.take():
            encoded = await self._picture(request)
            started = time.monotonic()
            said = await run_in_threadpool(self._model.answer, encoded)
        return JSONResponse(self._told(said, time.monotonic() - started))

    async def explain(self, request: Request) -> Response:
        """Draw what in the picture that is the body speaks for its answer."""
        async with self._explaining.take():
            encoded = await self._picture(request)
            why = await run_in_threadpool(find_out, self._model, encoded)
        drawn = base64.b64encode(why.drawn).decode()
        return JSONResponse({**asdict(why), "drawn": drawn})

    async def example(self, request: Request) -> Response:
        """Return a sample picture of the release as it was released."""
        return Response(self._sample(request), media_type="application/octet-stream")

    async def small_example(self, request: Request) -> Response:
        """Return a thumbnail of a sample picture."""
        small = await run_in_threadpool(thumbnail, self._sample(request))
        return Response(small, media_type="image/jpeg")

    async def health(self, request: Request) -> Response:
        """Say that the page itself is there, whatever the model does."""
        return JSONResponse({"page": "ready"})

    async def not_found(self, request: Request, error: Exception) -> Response:
        """Lead back to the page."""
        return self._html("absent.html.j2", status=404, here="")

    def _told(self, said: Said, seconds: float) -> dict[str, Any]:
        shares = [asdict(share) for share in self._shares.count(said.release)]
        return {**asdict(said), "seconds": round(seconds, 4), "shares": shares}

    async def _picture(self, request: Request) -> bytes:
        """Return the body, refused by its announced length before any of it is read.

        Raises:
            RequestError: it is empty, too large, too slow or cut off.
        """
        most = self._settings.max_picture_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            raise self._too_large()
        received = bytearray()
        try:
            async with asyncio.timeout(self._settings.upload_timeout_s):
                async for piece in request.stream():
                    received += piece
                    if len(received) > most:
                        raise self._too_large()
        except TimeoutError as error:
            raise RequestError(
                f"the picture did not arrive within {self._settings.upload_timeout_s:g} s: send a "
                "smaller one, or use a faster connection",
                status=408,
            ) from error
        except ClientDisconnect as error:
            raise RequestError("the sender has gone") from error
        if not received:
            raise RequestError("the file is empty: choose another picture")
        return bytes(received)

    def _too_large(self) -> RequestError:
        limit = self._settings.max_picture_bytes / _MIB
        return RequestError(
            f"the picture is larger than the limit of {limit:g} MiB: make it smaller", status=413
        )

    def _sample(self, request: Request) -> bytes:
        known, number = self._known, int(request.path_params["number"])
        samples = known.samples if known is not None else ()
        version = known.release.version if known is not None else None
        if request.path_params["version"] != version or number >= len(samples):
            raise RequestError("this example is of another release: load the page", status=404)
        return samples[number].encoded

    def _look_again(self) -> None:
        """See to it that what is told is at most a minute or so old; nobody waits for it here."""
        stale = time.monotonic() - self._looked > self._settings.look_again_s
        if stale and (self._looking is None or not self._looking.is_alive()):
            self._start_looking()

    def _start_looking(self) -> None:
        """Look in a thread that nobody waits for when the page ends."""
        self._looking = threading.Thread(target=self._look, name="look", daemon=True)
        self._looking.start()

    def _look(self) -> None:
        try:
            self._model.look_again()
        except ServerError as error:
            logger.info("who answers can't be asked: %s", error)
        self._known = self._follow(self._known)
        self._history = self._read_history(self._known)
        self._looked = time.monotonic()

    @asynccontextmanager
    async def _warming(self, app: Starlette) -> AsyncIterator[None]:
        """Read the history before anybody asks: MLflow takes seconds to import."""
        self._start_looking()
        yield

    def _html(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        text = self._templates.get_template(template).render(
            model=self._model,
            known=self._known,
            settings=self._settings,
            mib=_MIB,
            words=label,
            **values,
        )
        return HTMLResponse(text, status)

    @cached_property
    def _templates(self) -> jinja2.Environment:
        return jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )


async def _said_wrong(request: Request, error: Exception) -> Response:
    """Say what is wrong in words for whoever sent the picture; addresses stay in the log."""
    if isinstance(error, RequestError):
        return _refusal(str(error), error.status, error.retry_after_s)
    if isinstance(error, RequestRefusedError):
        return _refusal(error.said or "the model refuses this picture", 400)
    logger.warning("%s", error)
    if isinstance(error, ServerBusyError):
        return _refusal("the model is busy: try again in a few seconds", 429, 5)
    if isinstance(error, ServerUnreachableError):
        return _refusal("the model does not answer at the moment: try again later", 502)
    return _refusal("the model failed on this picture: try again, or tell who runs this page", 502)


def _refusal(words: str, status: int, retry_after_s: int | None = None) -> Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse({"error": words}, status, headers)
