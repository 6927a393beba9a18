"""A small client of a Linnet server, or of any server that speaks V2 and has our models.

    with Client("http://localhost:8080", model="flowers") as client:
        for answer in client.predict([Path("rose.jpg").read_bytes()]):
            print(answer.label, answer.score)

`http://` and `https://` speak REST with the binary extension, `grpc://` and `grpcs://` speak gRPC.
Source: the Open Inference Protocol, and Triton's binary tensor data extension.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self
from urllib.parse import quote, urlsplit

import numpy as np
import urllib3
from numpy.typing import NDArray

from linnet.errors import (
    RequestRefusedError,
    ServerBusyError,
    ServerError,
    ServerUnreachableError,
)

Pictures = Sequence[bytes] | NDArray[np.uint8]

PIXELS = "pictures"
ENCODED = "encoded"
OUTPUTS = ("label", "score", "probabilities", "abstain", "release")

_HEADER_LENGTH = "Inference-Header-Content-Length"
_DTYPES = {"BOOL": np.dtype("?"), "FP32": np.dtype("<f4")}
_BUSY = (429, 503)
_LONGEST_WAIT_S = 30
_MOST_GRPC_TRIES = 5
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Answer:
    """What the model says about one picture.

    `probabilities` is float32 [C], in the order of the release's classes.
    """

    label: str
    score: float
    abstain: bool
    release: str
    probabilities: NDArray[np.float32] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model; -1 in `shape` is a size that requests choose."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What a server says about one of its models."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    properties: Mapping[str, Any] = field(default_factory=dict)


class Client:
    """Calls one model of a server. Safe to use from several threads.

    Args:
        server: `http://host:8080`, `https://…`, `grpc://host:8081` or `grpcs://…`.
        model: its name on the server; null: the only one there is (REST only).
        version: one version of it; null: the one that the server chooses.
        token: bearer token or API key, where the server asks for one.
        authority: what to send as Host, where a gateway tells models apart by it.
        timeout_s: of each try.
        retries: how often a call is sent again when the server is busy, restarting or can't be
            reached, at most 4 times over gRPC. `Retry-After` is honoured up to 30 s.
        pictures_per_request: more pictures, or more than 16 MiB, are sent in several requests.
    """

    def __init__(
        self,
        server: str,
        *,
        model: str | None = None,
        version: str | None = None,
        token: str | None = None,
        authority: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 4,
        pictures_per_request: int = 16,
    ) -> None:
        scheme = urlsplit(server).scheme
        if scheme not in _TRANSPORTS or not urlsplit(server).netloc:
            raise ServerError(
                f"{server!r} is not a server's address: expected {', '.join(_TRANSPORTS)} and a "
                "host and port, such as http://localhost:8080"
            )
        self.server = server.rstrip("/")
        self._transport = _TRANSPORTS[scheme](self.server, token, authority, timeout_s, retries)
        self._size = pictures_per_request
        self.model = model or self._transport.only_model()
        self.version = version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def ready(self) -> bool:
        """Return whether the model answers; False too when the server can't be reached."""
        try:
            return self._transport.ready(self.model, self.version)
        except ServerError:
            return False

    def describe(self) -> ModelDescription:
        """Return the model's versions, inputs and outputs.

        Raises:
            ServerError: or a subclass, as `predict`.
        """
        return self._transport.describe(self.model, self.version)

    def predict(self, pictures: Pictures) -> list[Answer]:
        """Return an answer to each picture, in order.

        `pictures`: encoded ones (JPEG, PNG, WebP, TIFF, BMP, GIF), or uint8 [N, H, W, 3], RGB, of
        any size.

        Raises:
            RequestRefusedError: the server says what is wrong with the request.
            ServerBusyError: it had no room, or was stopping, in every try.
            ServerUnreachableError: it did not answer in time in any try.
            ServerError: it failed, or answered what is not V2.
        """
        answers: list[Answer] = []
        for piece in _pieces(pictures, self._size):
            tensor = _input(piece)
            outputs = self._transport.infer(self.model, self.version, tensor, OUTPUTS)
            answers += _answers(outputs, tensor.shape[0], self.server)
        return answers

    def infer(self, name: str, pictures: Pictures, outputs: Sequence[str]) -> Mapping[str, Any]:
        """Return the named outputs of one request, for models with other tensors than ours.

        `name`: the input's. `pictures`: encoded ones, or uint8 of the shape that the model takes.
        FP32 and BOOL come as arrays, BYTES as a sequence of bytes or text.

        Raises:
            ServerError: or a subclass, as `predict`.
        """
        tensor = (
            _Input(name, "UINT8", pictures.shape, pictures.tobytes())
            if isinstance(pictures, np.ndarray)
            else replace(_input(pictures), name=name)
        )
        return self._transport.infer(self.model, self.version, tensor, outputs)


def _pieces(pictures: Pictures, most: int) -> Iterator[Pictures]:
    """Cut pictures into requests of a number and size that servers take."""
    start = size = 0
    for end, picture in enumerate(pictures):
        more = len(picture) if isinstance(picture, bytes) else getattr(picture, "nbytes", 0)
        if end > start and (end - start >= most or size + more > _MOST_BYTES):
            yield pictures[start:end]
            start, size = end, 0
        size += more
    if len(pictures):
        yield pictures[start:]


@dataclass(frozen=True)
class _Input:
    """The input tensor as it goes on the wire."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


def _input(pictures: Pictures) -> _Input:
    if isinstance(pictures, np.ndarray):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise RequestRefusedError(
                f"got an array of {pictures.dtype} {list(pictures.shape)}, expected uint8 "
                "[N, H, W, 3]: RGB from 0 to 255, one picture as picture[None]"
            )
        return _Input(PIXELS, "UINT8", pictures.shape, pictures.tobytes())
    for number, picture in enumerate(pictures):
        if not isinstance(picture, bytes):
            raise RequestRefusedError(
                f"picture {number} is a {type(picture).__name__}, expected the bytes of a file: "
                "give path.read_bytes()"
            )
    framed = (part for picture in pictures for part in (struct.pack("<I", len(picture)), picture))
    return _Input(ENCODED, "BYTES", (len(pictures),), b"".join(framed))


def _answers(outputs: Mapping[str, Any], count: int, server: str) -> list[Answer]:
    """Turn the named outputs into answers. BYTES are sequences of bytes or text."""
    absent = [name for name in OUTPUTS if name not in outputs or len(outputs[name]) != count]
    if absent:
        raise ServerError(
            f"{server} answered without {', '.join(absent)} for {count} pictures: is it a Linnet "
            "server of this version?"
        )
    return [
        Answer(_text(label), float(score), bool(abstain), _text(release), probabilities)
        for label, score, probabilities, abstain, release in zip(
            *(outputs[name] for name in OUTPUTS), strict=True
        )
    ]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _from_raw(datatype: str, shape: Sequence[int], raw: bytes) -> Any:
    """Return a tensor of the wire's bytes: an array, or a list of bytes for BYTES."""
    if datatype == "BYTES":
        return list(_elements(raw))
    if datatype not in _DTYPES:
        raise ValueError(f"datatype {datatype}")
    return np.frombuffer(raw, _DTYPES[datatype]).reshape(shape)


def _elements(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        yield raw[at - length : at]


class _Transport(Protocol):
    """What both ways to a server do. Outputs are by name."""

    def __init__(
        self, server: str, token: str | None, authority: str | None, timeout_s: float, retries: int
    ) -> None: ...
    def only_model(self) -> str: ...
    def ready(self, model: str, version: str | None) -> bool: ...
    def describe(self, model: str, version: str | None) -> ModelDescription: ...
    def infer(
        self, model: str, version: str | None, tensor: _Input, outputs: Sequence[str]
    ) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


class _Rest:
    """REST with the binary extension."""

    def __init__(
        self, server: str, token: str | None, authority: str | None, timeout_s: float, retries: int
    ) -> None:
        self._server = server
        given = {"Authorization": token and f"Bearer {token}", "Host": authority}
        self._headers = {name: value for name, value in given.items() if value is not None}
        self._pool = urllib3.PoolManager(
            maxsize=32,
            timeout=urllib3.Timeout(total=timeout_s),
            retries=urllib3.Retry(
                retries,
                allowed_methods=None,
                status_forcelist=_BUSY,
                backoff_factor=0.1,
                backoff_jitter=0.1,
                retry_after_max=_LONGEST_WAIT_S,
                raise_on_status=False,
                redirect=False,
            ),
        )

    def close(self) -> None:
        self._pool.clear()

    def only_model(self) -> str:
        listed = self._json("GET", "/v2/models").get("models", [])
        if len(listed) != 1:
            raise ServerError(
                f"{self._server} serves {', '.join(listed) or 'no models'}: say which model"
            )
        return str(listed[0])

    def ready(self, model: str, version: str | None) -> bool:
        # Not through the retries: not ready is an answer here.
        url = f"{self._server}{_path(model, version)}/ready"
        try:
            return (
                self._pool.request("GET", url, headers=self._headers, retries=False).status == 200
            )
        except urllib3.exceptions.HTTPError:
            return False

    def describe(self, model: str, version: str | None) -> ModelDescription:
        said = self._json("GET", _path(model, version))
        try:
            inputs, outputs = (
                tuple(
                    Tensor(one["name"], one["datatype"], tuple(one["shape"])) for one in said[kind]
                )
                for kind in ("inputs", "outputs")
            )
            return ModelDescription(
                said["name"],
                tuple(said.get("versions", ())),
                said["platform"],
                inputs,
                outputs,
                said.get("properties") or {},
            )
        except (KeyError, TypeError) as error:
            raise self._not_v2(error) from error

    def infer(
        self, model: str, version: str | None, tensor: _Input, outputs: Sequence[str]
    ) -> Mapping[str, Any]:
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": tensor.name,
                        "datatype": tensor.datatype,
                        "shape": tensor.shape,
                        "parameters": {"binary_data_size": len(tensor.raw)},
                    }
                ],
                "outputs": [{"name": name} for name in outputs],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        response = self._send(
            "POST",
            f"{_path(model, version)}/infer",
            body=header + tensor.raw,
            headers={
                "Content-Type": "application/octet-stream",
                _HEADER_LENGTH: str(len(header)),
            },
        )
        try:
            return _outputs(response.data, response.headers.get(_HEADER_LENGTH))
        except (KeyError, TypeError, ValueError, struct.error) as error:
            raise self._not_v2(error) from error

    def _json(self, method: str, path: str) -> dict[str, Any]:
        response = self._send(method, path)
        try:
            return dict(json.loads(response.data))
        except (TypeError, ValueError) as error:
            raise self._not_v2(error) from error

    def _not_v2(self, error: Exception) -> ServerError:
        return ServerError(
            f"{self._server} answered what is not V2 ({error!r}): is another server on this port?"
        )

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        url = f"{self._server}{path}"
        try:
            response = self._pool.request(
                method, url, body=body, headers={**self._headers, **(headers or {})}
            )
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise _unreachable(self._server, reason) from error
        if response.status == 200:
            return response
        said = _said(response.data)
        if response.status in _BUSY:
            raise _busy(self._server, said)
        if 400 <= response.status < 500:
            raise RequestRefusedError(f"{self._server} refused the request: {said}", said=said)
        raise ServerError(f"{self._server} failed with {response.status}: {said}")


def _path(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def _outputs(body: bytes, header_length: str | None) -> dict[str, Any]:
    length = len(body) if header_length is None else int(header_length)
    outputs, at = {}, length
    for output in json.loads(body[:length])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            tensor: Any = np.array(output["data"], dtype=_DTYPES.get(output["datatype"]))
            outputs[output["name"]] = tensor.reshape(output["shape"])
        else:
            raw = body[at : at + size]
            outputs[output["name"]] = _from_raw(output["datatype"], output["shape"], raw)
            at += size
    return outputs


def _said(body: bytes) -> str:
    """Return the message of a V2 error, or the beginning of whatever else came."""
    try:
        return str(json.loads(body)["error"])
    except (KeyError, TypeError, ValueError):
        return body[:200].decode(errors="replace") or "without a word"


class _Grpc:
    """gRPC with raw contents. Retries are gRPC's own, which know the server's pushback."""

    def __init__(
        self, server: str, token: str | None, authority: str | None, timeout_s: float, retries: int
    ) -> None:
        try:
            import grpc

            from linnet.inference.protocol import open_inference_pb2 as protocol
        except ImportError as error:
            raise ServerError(
                f"{server} needs gRPC, which is not installed here: pip install 'linnet[serve]', "
                "or use the server's http:// address"
            ) from error
        self._grpc, self._messages = grpc, protocol
        self._server, self._timeout_s = server, timeout_s
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.service_config", json.dumps(_retry_policy(retries))),
            *([] if authority is None else [("grpc.default_authority", authority)]),
        ]
        target = urlsplit(server).netloc
        self._channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
            if server.startswith("grpcs:")
            else grpc.insecure_channel(target, options)
        )
        self._methods: dict[str, Any] = {}

    def close(self) -> None:
        self._channel.close()

    def only_model(self) -> str:
        raise ServerError(f"V2 over gRPC can't list the models of {self._server}: say which model")

    def ready(self, model: str, version: str | None) -> bool:
        return bool(self._call("ModelReady", name=model, version=version or "").ready)

    def describe(self, model: str, version: str | None) -> ModelDescription:
        said = self._call("ModelMetadata", name=model, version=version or "")
        inputs, outputs = (
            tuple(Tensor(one.name, one.datatype, tuple(one.shape)) for one in tensors)
            for tensors in (said.inputs, said.outputs)
        )
        return ModelDescription(
            said.name, tuple(said.versions), said.platform, inputs, outputs, dict(said.properties)
        )

    def infer(
        self, model: str, version: str | None, tensor: _Input, outputs: Sequence[str]
    ) -> Mapping[str, Any]:
        said = self._call(
            "ModelInfer",
            model_name=model,
            model_version=version or "",
            inputs=[{"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}],
            outputs=[{"name": name} for name in outputs],
            raw_input_contents=[tensor.raw],
        )
        try:
            return {
                output.name: _from_raw(output.datatype, output.shape, raw)
                for output, raw in zip(said.outputs, said.raw_output_contents, strict=True)
            }
        except (ValueError, struct.error) as error:
            raise ServerError(f"{self._server} answered what is not V2 ({error!r})") from error

    def _call(self, method: str, /, **fields: Any) -> Any:
        request = getattr(self._messages, f"{method}Request")
        if method not in self._methods:
            self._methods[method] = self._channel.unary_unary(
                f"/inference.GRPCInferenceService/{method}",
                request_serializer=request.SerializeToString,
                response_deserializer=getattr(self._messages, f"{method}Response").FromString,
            )
        try:
            return self._methods[method](
                request(**fields), timeout=self._timeout_s, metadata=self._metadata
            )
        except self._grpc.RpcError as error:
            raise self._error(error.code(), error.details()) from error

    def _error(self, code: Any, said: str) -> ServerError:
        codes = self._grpc.StatusCode
        if code is codes.DEADLINE_EXCEEDED:
            return _unreachable(self._server, f"no answer in {self._timeout_s} s: {said}")
        if code is codes.UNAVAILABLE:
            return _unreachable(self._server, said)
        if code is codes.RESOURCE_EXHAUSTED and "larger than max" not in said:
            return _busy(self._server, said)
        if code in (codes.INTERNAL, codes.UNKNOWN, codes.DATA_LOSS):
            return ServerError(f"{self._server} failed with {code.name}: {said}")
        return RequestRefusedError(f"{self._server} refused the request: {said}", said=said)


def _retry_policy(retries: int) -> dict[str, Any]:
    tries = min(retries + 1, _MOST_GRPC_TRIES)
    if tries < 2:
        return {}
    policy = {
        "maxAttempts": tries,
        "initialBackoff": "0.1s",
        "maxBackoff": f"{_LONGEST_WAIT_S}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    return {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}


def _unreachable(server: str, reason: object) -> ServerUnreachableError:
    return ServerUnreachableError(
        f"{server} can't be reached ({reason}): check the address and that `linnet serve` runs"
    )


def _busy(server: str, said: str) -> ServerBusyError:
    return ServerBusyError(
        f"{server} had no room in every try: {said}. Send less at once, or more retries"
    )


_TRANSPORTS: dict[str, type[_Transport]] = {
    "http": _Rest,
    "https": _Rest,
    "grpc": _Grpc,
    "grpcs": _Grpc,
}
