"""The Open Inference Protocol, version 2: requests and answers in JSON and its binary extension.

Nothing here does I/O, so all of it is tested as tables and fuzzed. Tensors that arrive as raw bytes
are looked at where they lie: no byte of a picture is copied.
"""

import binascii
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from linnet.errors import RequestError
from linnet.inference.answers import Answers

Buffer = bytes | memoryview
Pixels = NDArray[np.uint8]

PIXELS: Final = "pictures"
ENCODED: Final = "encoded"
# What one may ask for, with V2's data types, in the order of an answer that leaves it open.
OUTPUTS: Final = {
    "label": "BYTES",
    "score": "FP32",
    "probabilities": "FP32",
    "abstain": "BOOL",
    "release": "BYTES",
}
FORM = (
    f"send one input, {PIXELS!r} of datatype UINT8 and shape [N, H, W, 3], "
    f"or {ENCODED!r} of datatype BYTES and shape [N]"
)
_MAX_DIMENSION = 2**31


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may carry."""

    pictures: int
    pixels: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that was asked for, as binary data or as JSON."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked request: either `pixels` [N, H, W, 3] or `encoded` pictures."""

    id: str | None
    pixels: Pixels | None
    encoded: list[Buffer] | None
    outputs: tuple[Wanted, ...]
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input tensor before its content is looked at."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int


def parse_json(body: Buffer) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        RequestError: it is no JSON, or JSON but no object.
    """
    if not len(body):
        raise RequestError("the body is empty: send a JSON object")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON ({error}): send a JSON object") from error
    if not isinstance(value, dict):
        raise RequestError(f"the body is a JSON {_kind(value)}: send a JSON object")
    return value


def parse_request(body: Buffer, json_bytes: int | None, limits: Limits) -> InferRequest:
    """Return a checked inference request.

    `json_bytes` is what Inference-Header-Content-Length says: where the JSON ends and the binary
    tensors begin. None: all is JSON.

    Raises:
        RequestError: with what to change.
    """
    if json_bytes is None:
        values, binary = parse_json(body), None
    else:
        if not 0 < json_bytes <= len(body):
            raise RequestError(
                f"Inference-Header-Content-Length is {json_bytes}, and the body has {len(body)} "
                "bytes: it must be the length of the JSON in front of the binary tensors"
            )
        view = memoryview(body)
        values, binary = parse_json(view[:json_bytes]), view[json_bytes:]
    parameters = parameters_of(values, "the request")
    tensor, given = _only_input(values)
    where = f"input {tensor.name!r}"
    size = parameters_of(given, where).get("binary_data_size")
    if size is None:
        if binary is not None and len(binary):
            raise RequestError(
                f"{len(binary)} bytes follow the JSON, and no input has the parameter "
                "binary_data_size: set it, or leave the bytes away"
            )
        if "data" not in given:
            raise RequestError(f"{where} has no data: set data, or send it as binary data")
        pixels, encoded = _from_json(tensor, given["data"], limits)
    else:
        pixels, encoded = _from_binary(tensor, given, size, binary, limits)
    return InferRequest(
        id=_optional_text(values, "id"),
        pixels=pixels,
        encoded=encoded,
        outputs=_wanted(values, parameters.get("binary_data_output", False)),
        timeout_s=timeout_of(parameters),
    )


def tensor_of(name: Any, datatype: Any, shape: Any) -> Tensor:
    """Return a tensor's description, checked.

    Raises:
        RequestError: it is not one of those that a model takes.
    """
    if not isinstance(name, str):
        raise RequestError(f"an input's name is a {_kind(name)}, expected a string: {FORM}")
    if name not in (PIXELS, ENCODED):
        raise RequestError(f"there is no input {short(name)}: {FORM}")
    if datatype not in ("UINT8", "BYTES"):
        raise RequestError(f"input {name!r} is of datatype {short(datatype)}: {FORM}")
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not 1 <= len(shape) <= 8:
        raise RequestError(f"input {name!r} has the shape {short(shape)}: {FORM}")
    for side in shape:
        if isinstance(side, bool) or not isinstance(side, int) or not 0 <= side < _MAX_DIMENSION:
            raise RequestError(
                f"input {name!r} has the shape {short(list(shape))}, expected whole numbers "
                f"from 0 to {_MAX_DIMENSION - 1}: {FORM}"
            )
    dimensions = tuple(shape)
    return Tensor(name, datatype, dimensions, math.prod(dimensions))


def check_pixels(tensor: Tensor, limits: Limits) -> None:
    """Check the shape of a tensor of pixels.

    Raises:
        RequestError: it is not [N, H, W, 3], or has too many pictures or pixels.
    """
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or not tensor.count:
        raise RequestError(
            f"input {tensor.name!r} has the shape {list(shape)}, expected [N, H, W, 3] without a "
            "zero: pictures, rows, columns, then red, green and blue"
        )
    check_pictures(shape[0], limits)
    if shape[1] * shape[2] > limits.pixels:
        raise RequestError(
            f"input {tensor.name!r} has pictures of {shape[2]} × {shape[1]} pixels, allowed are "
            f"{limits.pixels}: send smaller ones",
            status=413,
        )


def check_pictures(count: int, limits: Limits) -> None:
    """Check the number of pictures of a request.

    Raises:
        RequestError: there are none or too many.
    """
    if not count:
        raise RequestError("the request has no picture: send at least one")
    if count > limits.pictures:
        raise RequestError(
            f"the request has {count} pictures, allowed are {limits.pictures}: send several "
            "requests",
            status=413,
        )


def check_encoded(tensor: Tensor, limits: Limits) -> None:
    """Check the shape of a tensor of encoded pictures.

    Raises:
        RequestError: it is not [N] (or [N, 1]), or has too many pictures.
    """
    if any(side != 1 for side in tensor.shape[1:]):
        raise RequestError(
            f"input {tensor.name!r} has the shape {list(tensor.shape)}, expected [N] for N "
            "encoded pictures"
        )
    check_pictures(tensor.count, limits)


def pixels_from(tensor: Tensor, raw: Buffer, limits: Limits) -> Pixels:
    """Return the pixels [N, H, W, 3] that lie in `raw`, without a copy.

    Raises:
        RequestError: shape and length don't fit each other.
    """
    check_pixels(tensor, limits)
    if len(raw) != tensor.count:
        raise RequestError(
            f"input {tensor.name!r} of shape {list(tensor.shape)} needs {tensor.count} bytes, "
            f"got {len(raw)}: correct the shape or the data"
        )
    return np.frombuffer(raw, np.uint8).reshape(tensor.shape)


def encoded_from(tensor: Tensor, raw: Buffer, limits: Limits) -> list[Buffer]:
    """Return the elements of a BYTES tensor, each led by its length in 4 little-endian bytes.

    Raises:
        RequestError: the lengths don't add up or there are more or fewer than the shape says.
    """
    check_encoded(tensor, limits)
    view = memoryview(raw)
    found: list[Buffer] = []
    at = 0
    for number in range(tensor.count):
        if at + 4 > len(view):
            raise RequestError(
                f"input {tensor.name!r} has {number} elements, its shape {list(tensor.shape)} "
                f"says {tensor.count}: lead each by its length in 4 little-endian bytes"
            )
        (length,) = struct.unpack_from("<I", view, at)
        at += 4
        if at + length > len(view):
            raise RequestError(
                f"element {number} of input {tensor.name!r} says it is {length} bytes long, and "
                f"{len(view) - at} are left: lead each by its length in 4 little-endian bytes"
            )
        found.append(view[at : at + length])
        at += length
    if at != len(view):
        raise RequestError(
            f"{len(view) - at} bytes follow the last element of input {tensor.name!r}: correct "
            f"the shape {list(tensor.shape)} or the data"
        )
    return found


def parameters_of(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the parameters of a request or tensor.

    Raises:
        RequestError: they are no object.
    """
    parameters = values.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(f"the parameters of {where} are a {_kind(parameters)}, not an object")
    return parameters


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Return the time limit that the parameter `timeout` sets in microseconds, in seconds.

    Raises:
        RequestError: it is no positive whole number.
    """
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout <= 0:
        raise RequestError(
            f"the parameter timeout is {short(timeout)}, expected microseconds, a whole number "
            "above 0"
        )
    return timeout / 1e6


def wanted_names(names: Sequence[str]) -> None:
    """Check the names of outputs.

    Raises:
        RequestError: one is unknown or asked for twice.
    """
    for name in names:
        if name not in OUTPUTS:
            raise RequestError(f"there is no output {short(name)}: ask for {', '.join(OUTPUTS)}")
    if len(set(names)) < len(names):
        raise RequestError("an output is asked for twice: name each once")


def metadata(classes: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return V2's description of a model's inputs (either is enough) and outputs."""
    inputs: list[dict[str, Any]] = [
        {"name": PIXELS, "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
    ]
    outputs: list[dict[str, Any]] = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [-1, classes] if name == "probabilities" else [-1],
        }
        for name, datatype in OUTPUTS.items()
    ]
    return inputs, outputs


class Renderer:
    """Puts one release's answers into V2's forms."""

    def __init__(self, model: str, version: str, classes: Sequence[str], release: str) -> None:
        self.model = model
        self.version = version
        self._classes = tuple(classes)
        self._release = release
        self._encoded = tuple(_led(name.encode()) for name in classes)
        self._encoded_release = _led(release.encode())
        self._plain: dict[str, Callable[[Answers], Any]] = {
            "label": lambda answers: [self._classes[best] for best in answers.best.tolist()],
            "score": lambda answers: answers.scores,
            "probabilities": lambda answers: answers.probabilities.reshape(-1),
            "abstain": lambda answers: answers.abstain.tolist(),
            "release": lambda answers: [self._release] * len(answers.best),
        }
        self._raw: dict[str, Callable[[Answers], bytes]] = {
            "label": lambda answers: b"".join(self._encoded[i] for i in answers.best.tolist()),
            "score": lambda answers: answers.scores.tobytes(),
            "probabilities": lambda answers: answers.probabilities.tobytes(),
            "abstain": lambda answers: answers.abstain.tobytes(),
            "release": lambda answers: self._encoded_release * len(answers.best),
        }

    def raw(self, name: str, answers: Answers) -> bytes:
        """Return an output as V2's raw bytes: little-endian, BYTES led by their lengths."""
        return self._raw[name](answers)

    def contents(self, name: str, answers: Answers) -> list[Any]:
        """Return an output's elements, flat, as gRPC's typed contents hold them."""
        found = self._plain[name](answers)
        if isinstance(found, np.ndarray):
            return list(found.tolist())
        return [each.encode() if isinstance(each, str) else each for each in found]

    def shape(self, name: str, answers: Answers) -> list[int]:
        """Return an output's shape."""
        return list(answers.probabilities.shape if name == "probabilities" else answers.best.shape)

    def render(
        self, answers: Answers, outputs: Sequence[Wanted], id: str | None
    ) -> tuple[bytes, int | None]:
        """Return the body of an answer, and the length of its JSON when binary data follows."""
        described: list[dict[str, Any]] = []
        tail: list[bytes] = []
        for wanted in outputs:
            name = wanted.name
            output: dict[str, Any] = {
                "name": name,
                "datatype": OUTPUTS[name],
                "shape": self.shape(name, answers),
            }
            if wanted.binary:
                tail.append(self._raw[name](answers))
                output["parameters"] = {"binary_data_size": len(tail[-1])}
            else:
                output["data"] = self._plain[name](answers)
            described.append(output)
        values: dict[str, Any] = {
            "model_name": self.model,
            "model_version": self.version,
            "outputs": described,
        }
        if id is not None:
            values["id"] = id
        head = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
        if not tail:
            return head, None
        return b"".join((head, *tail)), len(head)


def from_base64(text: Any, where: str) -> bytes:
    """Return what base64 stands for.

    Raises:
        RequestError: it is no string, no base64, or empty.
    """
    if not isinstance(text, str):
        raise RequestError(f"{where} is a {_kind(text)}, expected a picture's bytes in base64")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise RequestError(
            f"{where} is not base64 ({error}): in JSON, a picture's bytes are standard base64 "
            "without line breaks or a data: prefix"
        ) from error


def pixels_from_lists(tensor: Tensor, data: Any, limits: Limits) -> Pixels:
    """Return pixels [N, H, W, 3] from JSON numbers, flat or nested like the shape.

    Raises:
        RequestError: there are too many or too few, or one is no whole number from 0 to 255.
    """
    check_pixels(tensor, limits)
    where = f"the data of input {tensor.name!r}"
    if not isinstance(data, list):
        raise RequestError(f"{where} is a {_kind(data)}, expected a list of numbers")
    if data and isinstance(data[0], list):
        data = _flat(data, tensor.shape, where)
    if len(data) != tensor.count:
        raise RequestError(
            f"{where} has {len(data)} numbers, its shape {list(tensor.shape)} needs "
            f"{tensor.count}: correct the shape or the data"
        )
    try:
        # Several times faster than numpy; it would take booleans for numbers.
        raw = b"" if bool in map(type, data) else bytes(data)
    except (TypeError, ValueError):
        raw = b""
    if not raw:
        wrong = next(v for v in data if type(v) is not int or not 0 <= v <= 255)
        raise RequestError(
            f"{where} has {short(wrong)} in it: UINT8 takes whole numbers from 0 to 255"
        )
    return np.frombuffer(raw, np.uint8).reshape(tensor.shape)


def _flat(data: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    """Return nested lists as one, each level of the length that the shape says."""
    for depth in range(len(shape) - 1):
        for part in data:
            if not isinstance(part, list) or len(part) != shape[depth + 1]:
                raise RequestError(
                    f"{where} is not nested like its shape {list(shape)}: nest it alike, or send "
                    "one flat list"
                )
        data = list(chain.from_iterable(data))
    return data


def _only_input(values: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    inputs = values.get("inputs")
    if not isinstance(inputs, list):
        raise RequestError(f"inputs is {_kind(inputs)}, expected a list: {FORM}")
    if len(inputs) != 1:
        raise RequestError(f"the request has {len(inputs)} inputs: {FORM}")
    given = inputs[0]
    if not isinstance(given, dict):
        raise RequestError(f"an input is a {_kind(given)}, expected an object: {FORM}")
    for key in ("name", "datatype", "shape"):
        if key not in given:
            raise RequestError(f"an input has no {key}: {FORM}")
    return tensor_of(given["name"], given["datatype"], given["shape"]), given


def _from_json(
    tensor: Tensor, data: Any, limits: Limits
) -> tuple[Pixels | None, list[Buffer] | None]:
    if tensor.datatype == "UINT8":
        return pixels_from_lists(tensor, data, limits), None
    check_encoded(tensor, limits)
    where = f"the data of input {tensor.name!r}"
    if not isinstance(data, list):
        raise RequestError(f"{where} is a {_kind(data)}, expected a list of base64 strings")
    if data and isinstance(data[0], list):
        data = _flat(data, tensor.shape, where)
    if len(data) != tensor.count:
        raise RequestError(
            f"{where} has {len(data)} elements, its shape {list(tensor.shape)} says "
            f"{tensor.count}: correct the shape or the data"
        )
    return None, [
        from_base64(text, f"element {number} of input {tensor.name!r}")
        for number, text in enumerate(data)
    ]


def _from_binary(
    tensor: Tensor,
    given: Mapping[str, Any],
    size: Any,
    binary: memoryview | None,
    limits: Limits,
) -> tuple[Pixels | None, list[Buffer] | None]:
    where = f"input {tensor.name!r}"
    if "data" in given:
        raise RequestError(f"{where} has both data and binary_data_size: send it one way")
    if binary is None:
        raise RequestError(
            f"{where} has binary_data_size, and the request no Inference-Header-Content-Length: "
            "set that header to the length of the JSON"
        )
    if isinstance(size, bool) or not isinstance(size, int) or size != len(binary):
        raise RequestError(
            f"{where} has binary_data_size {short(size)}, and {len(binary)} bytes follow the "
            "JSON: correct binary_data_size, the data or Inference-Header-Content-Length"
        )
    if tensor.datatype == "UINT8":
        return pixels_from(tensor, binary, limits), None
    return None, encoded_from(tensor, binary, limits)


def _wanted(values: Mapping[str, Any], binary_by_default: Any) -> tuple[Wanted, ...]:
    binary = _flag(binary_by_default, "binary_data_output")
    outputs = values.get("outputs")
    if outputs is None or outputs == []:
        return tuple(Wanted(name, binary) for name in OUTPUTS)
    if not isinstance(outputs, list):
        raise RequestError(f"outputs is a {_kind(outputs)}, expected a list")
    found = []
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str):
            raise RequestError(f"an output has no name: ask for {', '.join(OUTPUTS)}")
        parameters = parameters_of(output, f"output {short(name)}")
        asked = _flag(parameters.get("binary_data", binary), "binary_data")
        if parameters.get("classification"):
            raise RequestError(
                "the parameter classification is not known here: ask for label, score or "
                "probabilities"
            )
        found.append(Wanted(name, asked))
    wanted_names([wanted.name for wanted in found])
    return tuple(found)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"the parameter {name} is {short(value)}, expected true or false")
    return value


def _optional_text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{key} is a {_kind(value)}, expected a string")
    return value


def _led(element: bytes) -> bytes:
    return struct.pack("<I", len(element)) + element


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def short(value: Any) -> str:
    """Return what a value looks like, cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
