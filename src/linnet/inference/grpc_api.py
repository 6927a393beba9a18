"""The gRPC side: V2's GRPCInferenceService."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError, Message

from linnet import __version__
from linnet.errors import RequestError
from linnet.inference import v2
from linnet.inference.answers import Answers
from linnet.inference.engine import without_frames
from linnet.inference.logs import Access
from linnet.inference.messages import Infer, read_infer
from linnet.inference.metrics import Metrics
from linnet.inference.models import Models, ServedModel
from linnet.inference.protocol import open_inference_pb2 as pb
from linnet.inference.queueing import Bodies, out_of_memory
from linnet.inference.request_id import given_id, safe_id, trace_id
from linnet.inference.rest import EXTENSIONS, check_token, describe
from linnet.inference.settings import ServeSettings

logger = logging.getLogger(__name__)

SERVICE: Final = "inference.GRPCInferenceService"
CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_HOLDING_S: Final = 0.25
_CLOSING_S: Final = 0.05
# Bytes that a client may send before its message is read. Without a bound, gRPC's estimate of the
# network's capacity lets each sender fill megabytes that no budget of ours knows of.
_UNREAD: Final = 256 << 10
# Bytes that a message counts for at least while it is received, and how fast large ones fade.
_SMALL: Final = 256 << 10
_KEPT: Final = 0.98
_OPEN: Final = frozenset({"ServerLive", "ServerReady", "ModelReady"})
_TYPED: Final = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}
_CONTENTS: Final = {
    "label": "bytes_contents",
    "score": "fp32_contents",
    "probabilities": "fp32_contents",
    "abstain": "bool_contents",
    "release": "bytes_contents",
}

Context = Any
Handler = Callable[[Any, Context], Awaitable[Message]]
Method = Callable[[Any, "Call"], Awaitable[Message]]


class GrpcServer:
    """Listens and answers; `draining` turns readiness off."""

    def __init__(
        self,
        models: Models,
        settings: ServeSettings,
        access: Access,
        metrics: Metrics,
        bodies: Bodies,
    ) -> None:
        self.draining = False
        self._stopping = False
        self._closed = asyncio.Event()
        self._models = models
        self._settings = settings
        self._access = access
        self._metrics = metrics
        self._bodies = bodies
        self._expected = _SMALL
        self._limits = v2.Limits(settings.pictures_per_request, settings.max_pixels)
        self._token = None if settings.token is None else settings.token.get_secret_value()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", 1024),
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", _UNREAD),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.max_metadata_size", 32 << 10),
            ],
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))

    async def listen(self, host: str, port: int) -> int:
        """Start to listen and return the port.

        Raises:
            OSError: the address is taken or not ours.
        """
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from error
        await self._server.start()
        return int(bound)

    async def drain(self, timeout_s: float) -> None:
        """Take no new calls, finish those that were accepted, close.

        gRPC cancels a call that arrives in the moment of its stop, which callers can't tell from a
        failure. So new calls are held for a moment before it, and told right after it that the
        server is unavailable: whoever waits for an answer makes no call in that moment.
        """
        self._stopping = True
        await asyncio.sleep(min(_HOLDING_S, timeout_s))
        stopping = asyncio.create_task(self._server.stop(timeout_s))
        await asyncio.sleep(min(_CLOSING_S, timeout_s))
        self._closed.set()
        await stopping

    async def server_live(self, request: Any, call: "Call") -> Message:
        """Return that the server lives."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, call: "Call") -> Message:
        """Return whether all models answer."""
        return pb.ServerReadyResponse(ready=self._models.ready and not self.draining)

    async def model_ready(self, request: Any, call: "Call") -> Message:
        """Return whether one model answers."""
        self._models.find(request.name, request.version or None)
        return pb.ModelReadyResponse(ready=not self.draining)

    async def server_metadata(self, request: Any, call: "Call") -> Message:
        """Return the server's name, version and extensions."""
        return pb.ServerMetadataResponse(name="linnet", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, request: Any, call: "Call") -> Message:
        """Return a model's inputs and outputs."""
        values = describe(self._models.find(request.name, request.version or None))
        properties = values["properties"]
        return pb.ModelMetadataResponse(
            name=values["name"],
            versions=values["versions"],
            platform=values["platform"],
            inputs=values["inputs"],
            outputs=values["outputs"],
            properties={
                key: ",".join(value) if isinstance(value, list) else str(value)
                for key, value in properties.items()
            },
        )

    async def repository_index(self, request: Any, call: "Call") -> Message:
        """Return all models with their states."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=name, version=version, state=state, reason=reason
                )
                for name, version, state, reason in self._models.states()
                if state == "READY" or not request.ready
            ]
        )

    async def repository_model_load(self, request: Any, call: "Call") -> Message:
        """Load a model again."""
        self._check_repository()
        await self._models.reload(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(self, request: Any, call: "Call") -> Message:
        """Stop serving a model."""
        self._check_repository()
        self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def model_infer(self, messages: Any, call: "Call") -> Message:
        """Answer pictures; their message is read only when there is room for it."""
        refusal = self._models.full() or self._bodies.refusal(self._expected)
        if refusal is not None:
            raise refusal
        with self._bodies.holding(self._expected):
            request = await self._read(call)
        # gRPC does not say how long a message will be: each counts as the largest of late.
        self._expected = max(request.size, _SMALL, int(_KEPT * self._expected))
        with self._bodies.holding(request.size):
            call.id = call.id or safe_id(request.message.id) or uuid.uuid4().hex
            call.model = self._models.peek(request.message.model_name)
            call.context.set_trailing_metadata((("x-request-id", call.id),))
            return await self._infer(request.message, request.raw, call.id)

    async def _read(self, call: "Call") -> Infer:
        """Receive the message of a call."""
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                request = await call.context.read()
        except TimeoutError as error:
            raise RequestError(
                "the message was not sent in time: send it faster", status=408
            ) from error
        if request is grpc.aio.EOF:
            raise RequestError("the call has no message: send a ModelInferRequest")
        if request is None:
            raise _unreadable("ModelInfer")
        return cast(Infer, request)

    async def _infer(self, request: Any, raw: Sequence[v2.Buffer], id: str) -> Message:
        model = self._models.find(request.model_name, request.model_version or None)
        pixels, encoded = _pictures(request, raw, self._limits)
        names = [output.name for output in request.outputs] or list(v2.OUTPUTS)
        v2.wanted_names(names)
        limit_s = self._settings.request_timeout_s
        if request.parameters:
            parameters = {key: _value(given) for key, given in request.parameters.items()}
            limit_s = min(limit_s, v2.timeout_of(parameters) or limit_s)
        try:
            async with asyncio.timeout(limit_s):
                answers = await model.answer(pixels=pixels, encoded=encoded, request_id=id)
        except TimeoutError as error:
            raise RequestError(
                "no answer in time: send less at once, or try again", status=504
            ) from error
        return _response(model, answers, names, request.id, raw=bool(raw))

    def _check_repository(self) -> None:
        if not self._settings.repository_api:
            raise RequestError(
                "loading and unloading is off: start the server with --repository-api", status=403
            )

    def _handlers(self) -> "grpc.GenericRpcHandler[Any, Any]":
        calls: dict[str, tuple[Method, type[Message]]] = {
            "ServerLive": (self.server_live, pb.ServerLiveRequest),
            "ServerReady": (self.server_ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "RepositoryIndex": (self.repository_index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self.repository_model_load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (
                self.repository_model_unload,
                pb.RepositoryModelUnloadRequest,
            ),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, method),
                request_deserializer=_deserializer(message),
                response_serializer=_serialize,
            )
            for name, (method, message) in calls.items()
        }
        # To callers it is unary, too. Here, its message is read only when there is room for it.
        handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
            self._guarded("ModelInfer", self.model_infer),
            request_deserializer=read_infer,
            response_serializer=_serialize,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(self, name: str, method: Method) -> Handler:
        """Return the method with authorization in front, and errors turned into statuses."""

        async def answer(request: Any, context: Context) -> Message:
            headers = _headers(context)
            call = Call(name, context, given_id(headers) or "", trace=trace_id(headers))
            began, code = time.perf_counter(), "INTERNAL"
            try:
                if self._stopping:
                    # Once it has closed: whoever is told before may call again meanwhile.
                    await self._closed.wait()
                    raise RequestError("this server is stopping: call another one", status=503)
                self._authorize(call)
                if request is None:
                    raise _unreadable(name)
                message = await method(request, call)
                code = "OK"
                return message
            except (RequestError, MemoryError) as error:
                without_frames(error)
                refusal = error if isinstance(error, RequestError) else out_of_memory()
                status = CODES.get(refusal.status, grpc.StatusCode.INTERNAL)
                code = status.name
                if refusal.retry_after_s is not None:
                    context.set_trailing_metadata(
                        (
                            ("retry-after", str(refusal.retry_after_s)),
                            ("grpc-retry-pushback-ms", str(1000 * refusal.retry_after_s)),
                        )
                    )
                await context.abort(status, str(refusal))
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                raise
            except Exception:
                logger.exception("%s failed", name)
                await context.abort(
                    grpc.StatusCode.INTERNAL,
                    "something went wrong here, not with the request: ask whoever runs this "
                    "server to look into its log",
                )
            finally:
                self._note(call, code, time.perf_counter() - began)
            raise AssertionError("unreachable")

        return answer

    def _authorize(self, call: "Call") -> None:
        if self._token is not None and call.name not in _OPEN:
            given = _headers(call.context)
            check_token(self._token, given.get("authorization"), given.get("x-api-key"))

    def _note(self, call: "Call", code: str, seconds: float) -> None:
        """Count and log a call that is over."""
        if call.model is not None:
            call.model.metrics.finished("grpc", code, seconds)
        elif code != "OK":
            self._metrics.refused.labels("grpc", code).inc()
        self._access.note(
            id=call.id,
            protocol="grpc",
            call=call.name,
            model=call.model,
            code=code,
            failed=code != "OK",
            seconds=seconds,
            trace=call.trace,
        )


@dataclass(slots=True)
class Call:
    """One call: what of it becomes known goes into the log."""

    name: str
    context: Context
    id: str = ""
    model: ServedModel | None = None
    trace: str | None = None


def _headers(context: Context) -> dict[str, str]:
    return {key: str(value) for key, value in context.invocation_metadata() or ()}


def _unreadable(name: str) -> RequestError:
    return RequestError(
        f"the message can't be read: send a {name}Request as open_inference.proto describes it"
    )


def _deserializer(message: type[Message]) -> Callable[[bytes], Message | None]:
    """Return a reader of messages that gives None for what is none."""

    def read(encoded: bytes) -> Message | None:
        try:
            return message.FromString(encoded)
        except DecodeError:
            return None

    return read


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _pictures(
    request: Any, raw: Sequence[v2.Buffer], limits: v2.Limits
) -> tuple[v2.Pixels | None, list[v2.Buffer] | None]:
    """Return the pixels [N, H, W, 3] or the encoded pictures of a request."""
    if len(request.inputs) != 1:
        raise RequestError(f"the request has {len(request.inputs)} inputs: {v2.FORM}")
    given = request.inputs[0]
    tensor = v2.tensor_of(given.name, given.datatype, tuple(given.shape))
    if not raw:
        return _from_contents(tensor, given.contents, limits)
    if len(raw) != 1:
        raise RequestError(
            f"the request has 1 input and {len(raw)} raw_input_contents: send one for each input"
        )
    if given.HasField("contents"):
        raise RequestError(
            f"input {tensor.name!r} has both contents and raw_input_contents: send it one way"
        )
    if tensor.datatype == "UINT8":
        return v2.pixels_from(tensor, raw[0], limits), None
    return None, v2.encoded_from(tensor, raw[0], limits)


def _from_contents(
    tensor: v2.Tensor, contents: Any, limits: v2.Limits
) -> tuple[v2.Pixels | None, list[v2.Buffer] | None]:
    wanted = _TYPED[tensor.datatype]
    others = [name.name for name, _ in contents.ListFields() if name.name != wanted]
    if others:
        raise RequestError(
            f"input {tensor.name!r} of datatype {tensor.datatype} has {', '.join(others)}: send "
            f"{wanted}, or raw_input_contents"
        )
    if tensor.datatype == "BYTES":
        v2.check_encoded(tensor, limits)
        encoded = list(contents.bytes_contents)
        if len(encoded) != tensor.count:
            raise RequestError(
                f"input {tensor.name!r} has {len(encoded)} bytes_contents, its shape "
                f"{list(tensor.shape)} says {tensor.count}: correct the shape or the data"
            )
        return None, encoded
    v2.check_pixels(tensor, limits)
    numbers = np.array(contents.uint_contents, np.uint32)
    if numbers.size and numbers.max() > 255:
        raise RequestError(
            f"input {tensor.name!r} has {numbers.max()} in it: UINT8 takes whole numbers from 0 "
            "to 255"
        )
    if numbers.size != tensor.count:
        raise RequestError(
            f"input {tensor.name!r} has {numbers.size} uint_contents, its shape "
            f"{list(tensor.shape)} needs {tensor.count}: correct the shape or the data"
        )
    return numbers.astype(np.uint8).reshape(tensor.shape), None


def _response(
    model: ServedModel, answers: Answers, names: list[str], id: str, *, raw: bool
) -> Message:
    """Return the answer in the form of the question: raw to raw, contents to contents."""
    render = model.renderer
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=id)
    for name in names:
        output = response.outputs.add(
            name=name, datatype=v2.OUTPUTS[name], shape=render.shape(name, answers)
        )
        if raw:
            response.raw_output_contents.append(render.raw(name, answers))
        else:
            getattr(output.contents, _CONTENTS[name]).extend(render.contents(name, answers))
    return response


def _value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)
