"""Label Studio's ML backend protocol in front of V2: /health, /setup, /predict, /webhook.

Read in Label Studio 1.23's `ml/api_connector.py`, which is what calls it.
"""

import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from linnet.annotation.label_studio import LabelStudio
from linnet.annotation.labelling import Labelling
from linnet.client import Client
from linnet.errors import (
    AnnotationAbsentError,
    AnnotationError,
    LinnetError,
    RequestRefusedError,
    ServeError,
    ServerError,
)
from linnet.ui.asking import Said, open_model

log = logging.getLogger(__name__)

_STOP_WITHIN_S = 5


class Backend:
    """Pre-labels the pictures of one Label Studio by the model that a client asks.

    Pictures are fetched from that Label Studio alone, whatever a request names.

    Raises:
        ServerError: or a subclass: the model can't be asked, or takes no pictures.
    """

    def __init__(self, client: Client, studio: LabelStudio) -> None:
        self._client = client
        self._studio = studio
        self._model = open_model(client)

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/setup", self.setup, methods=["POST"]),
                Route("/predict", self.predict, methods=["POST"]),
                Route("/webhook", self.webhook, methods=["POST"]),
            ],
            exception_handlers={LinnetError: _failed},
        )

    async def health(self, request: Request) -> Response:
        """Say whether the model answers."""
        if await run_in_threadpool(self._client.ready):
            return JSONResponse({"status": "UP", "model_class": self._client.model})
        words = f"{self._client.model} at {self._client.server} is not ready"
        return JSONResponse({"status": "DOWN", "error": words}, status_code=503)

    async def setup(self, request: Request) -> Response:
        """Check that a project asks for the model's classes, and say which release answers."""
        body = await _json(request)
        model = await run_in_threadpool(open_model, self._client)
        if body.get("schema"):
            project = str(body.get("project", "of the request"))
            found = Labelling.parse(str(body["schema"]), project)
            found.require(model.classes, project, model.release)
        return JSONResponse({"model_version": model.release})

    async def predict(self, request: Request) -> Response:
        """Answer tasks, in order; a picture that can't be had or used has no answer."""
        body = await _json(request)
        try:
            labelling = Labelling.parse(str(body["label_config"]), str(body.get("project")))
            data = [task["data"] for task in body["tasks"]]
        except (KeyError, TypeError) as error:
            raise AnnotationError(
                f"the request lacks {error}: expected tasks with data, and label_config"
            ) from error
        results = await run_in_threadpool(
            lambda: [self._answer(str(one.get(labelling.picture) or "")) for one in data]
        )
        known = set(labelling.classes)
        return JSONResponse({"results": [_prediction(one, labelling, known) for one in results]})

    async def webhook(self, request: Request) -> Response:
        """Take note of an annotation, as Label Studio asks: nothing is learned from it here."""
        return JSONResponse({})

    def _answer(self, address: str) -> Said | None:
        try:
            return self._model.answer(self._studio.picture(address))
        except (AnnotationAbsentError, RequestRefusedError) as error:
            log.warning("a task gets no answer: %s", error)
            return None


def _prediction(answer: Said | None, labelling: Labelling, known: set[str]) -> list[dict[str, Any]]:
    if answer is None or answer.label not in known:
        return []
    return [labelling.prediction(answer.label, answer.score, answer.release)]


def serve_backend(
    client: Client,
    studio: LabelStudio,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the backend until SIGTERM or SIGINT; `ready` is called with its address.

    Raises:
        ServeError: the port can't be had.
        ServerError: or a subclass: the model can't be asked, or takes no pictures.
    """
    backend = Backend(client, studio)
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise ServeError(
            f"can't listen on {host}:{port} ({error}): choose another --port or --host"
        ) from error
    config = uvicorn.Config(
        backend.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_WITHIN_S,
    )
    with listener:
        ready("http://{}:{}".format(*listener.getsockname()[:2]))
        uvicorn.Server(config).run(sockets=[listener])


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise AnnotationError(f"the request is no JSON ({error})") from error
    if not isinstance(body, dict):
        raise AnnotationError("the request is no JSON object")
    return body


async def _failed(request: Request, error: Exception) -> Response:
    log.warning("%s: %s", request.url.path, error)
    status = 502 if isinstance(error, ServerError) else 400
    return JSONResponse({"error": str(error)}, status_code=status)
