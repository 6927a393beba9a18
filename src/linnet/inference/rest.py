"""The REST side: V2, V1's :predict, /predict for people with curl, repository, metrics, OpenAPI."""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote

import orjson

from linnet import __version__
from linnet.errors import RequestError
from linnet.inference import metrics as prometheus
from linnet.inference import openapi, v1, v2
from linnet.inference.answers import Answers
from linnet.inference.engine import without_frames
from linnet.inference.feedback import Feedback
from linnet.inference.fetching import Fetcher
from linnet.inference.http import JSON, Request, Response, error_response
from linnet.inference.logs import Access
from linnet.inference.metrics import Metrics
from linnet.inference.models import Models, ServedModel
from linnet.inference.queueing import out_of_memory
from linnet.inference.request_id import given_id, safe_id, trace_id
from linnet.inference.settings import ServeSettings

logger = logging.getLogger(__name__)

OCTETS = "application/octet-stream"
JSON_LENGTH = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "model_repository"]


class Rest:
    """Routes and answers of REST requests; `draining` turns readiness off."""

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        settings: ServeSettings,
        access: Access,
        feedback: Feedback,
    ) -> None:
        self.draining = False
        self._models = models
        self._metrics = metrics
        self._settings = settings
        self._access = access
        self._feedback = feedback
        self._limits = v2.Limits(settings.pictures_per_request, settings.max_pixels)
        self._fetcher = Fetcher(settings)
        self._token = None if settings.token is None else settings.token.get_secret_value()

    def gate(self, request: Request, length: int) -> Response | None:
        """Return the refusal of a request by its head, or None; `length` -1 is unknown."""
        try:
            self._authorize(request)
            model = self._asked_for(request)
            if request.headers.get("content-encoding", "identity") != "identity":
                raise RequestError(
                    "compressed bodies are not read: send it without Content-Encoding", status=415
                )
            if model is not None and (refusal := model.waiting.refusal(1)) is not None:
                raise refusal
        except RequestError as error:
            return error_response(error)
        return None

    async def handle(self, request: Request, refusal: Response | None = None) -> Response:
        """Answer a request, or pass on its refusal; every error becomes an answer.

        A request that could not be read has no method and no path.
        """
        request.id = given_id(request.headers) or uuid.uuid4().hex
        model: ServedModel | None = None
        try:
            model = self._asked_for(request)
            async with asyncio.timeout(self._settings.request_timeout_s):
                response = refusal or await self._route(request)
        except RequestError as error:
            without_frames(error)
            response = error_response(error)
        except TimeoutError:
            response = error_response(
                RequestError("no answer in time: send less at once, or try again", status=504)
            )
        except MemoryError:
            response = error_response(out_of_memory())
        except Exception:
            logger.exception("request %s failed", request.id)
            response = error_response(
                RequestError(
                    f"something went wrong here, not with the request: ask whoever runs this "
                    f"server to look for request {request.id} in its log",
                    status=500,
                )
            )
        took = time.perf_counter() - request.received_s
        if model is not None:
            model.metrics.finished("rest", str(response.status), took)
        elif response.status >= 400:
            self._metrics.refused.labels("rest", str(response.status)).inc()
        response.headers.append(("x-request-id", request.id))
        self._access.note(
            id=request.id,
            protocol="rest",
            call=f"{request.method} {request.path}".strip() or "unread",
            model=model,
            code=response.status,
            failed=response.status >= 400,
            seconds=took,
            trace=trace_id(request.headers),
        )
        return response

    async def _route(self, request: Request) -> Response:
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        match (request.method, *parts):
            case ("POST", "v2", "models", name, "infer"):
                return await self._infer(request, name, None)
            case ("POST", "v2", "models", name, "versions", version, "infer"):
                return await self._infer(request, name, version)
            case ("POST", "predict", name):
                return await self._predict(request, name)
            case ("POST", "feedback", name):
                return self._told(request, name)
            case ("POST", "v1", "models", call) if call.endswith(":predict"):
                return await self._predict_v1(request, call.removesuffix(":predict"))
            case ("GET" | "HEAD", *_):
                return self._look(parts)
            case ("POST", "v2", "repository", "index"):
                return self._index(request)
            case ("POST", "v2", "repository", "models", name, ("load" | "unload") as what):
                return await self._change(name, what)
        raise _unknown(request, parts)

    def _look(self, parts: list[str]) -> Response:
        """Answer what only looks."""
        match parts:
            case ["v2", "health", "live"]:
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                ready = self._models.ready and not self.draining
                return _json({"ready": ready}, 200 if ready else 503)
            case ["v2"]:
                return _json({"name": "linnet", "version": __version__, "extensions": EXTENSIONS})
            case ["v2", "models"] | ["v1", "models"]:
                return _json({"models": self._models.names()})
            case ["v2", "models", name, "ready"]:
                return self._ready(name, None)
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._ready(name, version)
            case ["v2", "models", name]:
                return _json(describe(self._models.find(name)))
            case ["v2", "models", name, "versions", version]:
                return _json(describe(self._models.find(name, version)))
            case ["v1", "models", name]:
                self._models.find(name)
                return _json({"name": name, "ready": not self.draining})
            case ["metrics"]:
                return Response(200, self._metrics.render(), prometheus.CONTENT_TYPE)
            case ["openapi.json"]:
                return _json(openapi.description(self._models.names(), self._settings))
        raise _unknown(None, parts)

    def _ready(self, name: str, version: str | None) -> Response:
        model = self._models.find(name, version)
        ready = not self.draining
        return _json({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def _infer(self, request: Request, name: str, version: str | None) -> Response:
        model = self._models.find(name, version)
        parsed = v2.parse_request(request.body, _json_bytes(request), self._limits)
        request.id = given_id(request.headers) or safe_id(parsed.id or "") or request.id
        answers = await _in_time(
            model.answer(pixels=parsed.pixels, encoded=parsed.encoded, request_id=request.id),
            parsed.timeout_s,
        )
        body, json_bytes = model.renderer.render(answers, parsed.outputs, parsed.id)
        if json_bytes is None:
            return Response(200, body)
        return Response(
            200, body, OCTETS, headers=[("Inference-Header-Content-Length", str(json_bytes))]
        )

    async def _predict(self, request: Request, name: str) -> Response:
        """Answer one picture: its bytes, or JSON that says where it is."""
        model = self._models.find(name)
        content_type = _content_type(request)
        if content_type == JSON:
            picture = await self._named(v2.parse_json(request.body))
        elif content_type.startswith("image/") or content_type in (OCTETS, ""):
            picture = bytes(request.body)
        else:
            raise RequestError(
                f"the body is {content_type[:80]}: send a picture as image/jpeg (or the like), or "
                'JSON {"url": "https://…"}',
                status=415,
            )
        if not picture:
            raise RequestError("the body is empty: send a picture's bytes")
        answers = await model.answer(pixels=None, encoded=[picture], request_id=request.id)
        (prediction,) = v1.predictions(answers, model.classes)
        return _json({"model": name, "release": model.release, **prediction})

    async def _named(self, values: dict[str, Any]) -> bytes:
        match values:
            case {"url": str(url)} if len(values) == 1:
                return await self._fetcher.fetch(url)
            case {"b64": text} if len(values) == 1:
                return v2.from_base64(text, "b64")
        raise RequestError('expected {"url": "https://…"} or {"b64": "a picture in base64"}')

    async def _predict_v1(self, request: Request, name: str) -> Response:
        model = self._models.find(name)
        _check_json(request)
        pixels, encoded = v1.parse_request(v2.parse_json(request.body), self._limits)
        answers = await model.answer(pixels=pixels, encoded=encoded, request_id=request.id)
        return _json({"predictions": v1.predictions(answers, model.classes)})

    def _told(self, request: Request, name: str) -> Response:
        """Take true labels of pictures that were answered."""
        model = self._models.find(name)
        _check_json(request)
        taken = self._feedback.take(name, model.classes, v2.parse_json(request.body))
        return _json(asdict(taken), 202 if taken.kept else 200)

    def _index(self, request: Request) -> Response:
        values = v2.parse_json(request.body) if len(request.body) else {}
        only_ready = values.get("ready") is True
        return _json(
            [
                {"name": name, "version": version, "state": state, "reason": reason}
                for name, version, state, reason in self._models.states()
                if state == "READY" or not only_ready
            ]
        )

    async def _change(self, name: str, what: str) -> Response:
        if not self._settings.repository_api:
            raise RequestError(
                "loading and unloading is off: start the server with --repository-api", status=403
            )
        if what == "load":
            await self._models.reload(name)
        else:
            self._models.unload(name)
        return _json({})

    def _asked_for(self, request: Request) -> ServedModel | None:
        """Return the model that a POST is for, if there is one."""
        if request.method != "POST":
            return None
        match request.path.split("/"):
            case ["", "v2", "models", name, *_] | ["", "predict", name]:
                return self._models.peek(unquote(name))
            case ["", "v1", "models", call]:
                return self._models.peek(unquote(call).removesuffix(":predict"))
        return None

    def _authorize(self, request: Request) -> None:
        if self._token is None or request.path.startswith(("/v2/health/", "/metrics")):
            return
        headers = request.headers
        check_token(self._token, headers.get("authorization"), headers.get("x-api-key"))


def check_token(token: str, authorization: str | None, api_key: str | None) -> None:
    """Check what a request carries against the server's token.

    Raises:
        RequestError: 401, it carries another one or none.
    """
    given = api_key or ""
    if authorization is not None and authorization[:7].lower() == "bearer ":
        given = authorization[7:].strip()
    if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        raise RequestError(
            "a token is needed: send Authorization: Bearer … or X-API-Key: …", status=401
        )


def describe(model: ServedModel) -> dict[str, Any]:
    """Return V2's metadata of a model."""
    inputs, outputs = v2.metadata(len(model.classes))
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "onnxruntime_onnx",
        "inputs": inputs,
        "outputs": outputs,
        "properties": {
            "release": model.release,
            "classes": list(model.classes),
            "size_px": model.spec.size_px,
            "fit": model.spec.fit,
        },
    }


async def _in_time(answer: Awaitable[Answers], timeout_s: float | None) -> Answers:
    if timeout_s is None:
        return await answer
    async with asyncio.timeout(timeout_s):
        return await answer


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _json_bytes(request: Request) -> int | None:
    """Return the length of the JSON in front of binary tensors, None where all is JSON."""
    length = request.headers.get(JSON_LENGTH)
    if length is None:
        if _content_type(request) == OCTETS:
            raise RequestError(
                f"the body is {OCTETS}, and there is no Inference-Header-Content-Length: set it to "
                "the length of the JSON in front, or post a bare picture to /predict/<model>"
            )
        _check_json(request)
        return None
    if not length.isascii() or not length.isdigit() or len(length) > 10:
        raise RequestError(
            f"Inference-Header-Content-Length is {length[:40]!r}, expected the length of the JSON "
            "in bytes"
        )
    if _content_type(request) not in (OCTETS, JSON, ""):
        raise _not_read(request, f"{OCTETS} with binary tensors")
    return int(length)


def _check_json(request: Request) -> None:
    if _content_type(request) not in (JSON, ""):
        raise _not_read(request, JSON)


def _not_read(request: Request, wanted: str) -> RequestError:
    found = request.headers.get("content-type", "")[:80]
    return RequestError(
        f"the body's Content-Type is {found!r}: send {wanted} (with curl: -H 'Content-Type: "
        f"{wanted.split()[0]}')",
        status=415,
    )


_METHODS = {"infer": "POST", "index": "POST", "load": "POST", "unload": "POST"}


def _unknown(request: Request | None, parts: list[str]) -> RequestError:
    path = "/" + "/".join(parts)
    shown = path if len(path) <= 120 else f"{path[:119]}…"
    posts = (
        parts[0] in ("predict", "feedback")
        or parts[-1] in _METHODS
        or parts[-1].endswith(":predict")
    )
    if request is None and posts:
        return RequestError(f"{shown} is not for GET: use POST", status=405)
    if request is not None and request.method not in ("GET", "HEAD", "POST"):
        return RequestError(f"{request.method} is not known here: use GET or POST", status=405)
    if request is not None and not posts and parts[0] in ("v1", "v2", "metrics", "openapi.json"):
        return RequestError(f"{shown} is not for POST: use GET", status=405)
    return RequestError(
        f"there is nothing at {shown}: /openapi.json describes what there is", status=404
    )
