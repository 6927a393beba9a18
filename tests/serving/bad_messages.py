"""gRPC messages that are wrong for certain, made with tritonclient's classes of the protocol."""

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as v2

from tests.serving.bad_requests import bad_pictures, framed, photo

INVALID = ("INVALID_ARGUMENT",)
INVALID_OR_TOO_MUCH = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE")


@dataclass(frozen=True)
class BadMessage:
    """One bad message: its bytes, and the statuses that are right."""

    name: str
    body: bytes
    method: str = "ModelInfer"
    codes: tuple[str, ...] = INVALID

    def __str__(self) -> str:
        return self.name


def infer(
    *,
    name: str = "pictures",
    datatype: str = "UINT8",
    shape: tuple[int, ...] = (1, 4, 4, 3),
    raw: tuple[bytes, ...] = (bytes(48),),
    contents: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = (),
    **more: Any,
) -> Any:
    request = v2.ModelInferRequest(model_name="flowers")
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents is not None:
        tensor.contents.CopyFrom(v2.InferTensorContents(**contents))
    request.raw_input_contents.extend(raw)
    for output in outputs:
        request.outputs.add(name=output)
    for key, value in more.items():
        setattr(request, key, value)
    return request


def hand_made() -> Iterator[BadMessage]:
    messages: dict[str, Any] = {
        "no input": v2.ModelInferRequest(model_name="flowers"),
        "another input": infer(name="image"),
        "a nameless input": infer(name=""),
        "no contents": infer(raw=()),
        "two contents": infer(raw=(bytes(48), bytes(48))),
        "short contents": infer(raw=(bytes(47),)),
        "long contents": infer(raw=(bytes(49),)),
        "empty contents": infer(raw=(b"",)),
        "both contents": infer(contents={"uint_contents": [0] * 48}),
        "output not there": infer(outputs=("logits",)),
        "output twice": infer(outputs=("label", "label")),
        "nameless output": infer(outputs=("",)),
        "short typed contents": infer(raw=(), contents={"uint_contents": [0] * 47}),
        "long typed contents": infer(raw=(), contents={"uint_contents": [0] * 49}),
        "typed contents with 256": infer(raw=(), contents={"uint_contents": [256] * 48}),
        "contents of another type": infer(raw=(), contents={"fp32_contents": [0.0] * 48}),
        "contents of two types": infer(
            raw=(), contents={"uint_contents": [0] * 48, "int_contents": [0] * 48}
        ),
        "contents of not-a-number": infer(raw=(), contents={"fp32_contents": [float("nan")] * 48}),
        "typed encoded contents too many": infer(
            raw=(), datatype="BYTES", shape=(1,), contents={"bytes_contents": [photo()] * 2}
        ),
        "typed encoded contents too few": infer(
            raw=(), datatype="BYTES", shape=(2,), contents={"bytes_contents": [photo()]}
        ),
    }
    twice = infer()
    twice.inputs.add().CopyFrom(twice.inputs[0])
    twice.raw_input_contents.append(bytes(48))
    messages["an input twice"] = twice
    for shape in (
        (), (48,), (0, 4, 4, 3), (-1, 4, 4, 3), (1, -4, -4, 3), (1, 4, 4, 4), (1, 3, 4, 4), (2,
        4, 4, 3),
        (1, 4, 4), (1, 1, 4, 4, 3), (2**62, 4, 4, 3), (2**63 - 1,) * 4, (1,) * 5_000, (-(2**63),
        1, 1, 3),
    ):  # fmt: skip
        messages[f"shape {shape[:5]}"] = infer(shape=shape)
    for datatype in ("", "uint8", "INT8", "FP32", "FP16", "BOOL", "INT64", "STRING", "X" * 9_999):
        messages[f"datatype {datatype[:9]}"] = infer(datatype=datatype)
    for name, raw in {
        "a length beyond the end": struct.pack("<I", 2**32 - 1) + photo(),
        "a length of one more": struct.pack("<I", len(photo()) + 1) + photo(),
        "a length of one less": struct.pack("<I", len(photo()) - 1) + photo(),
        "half a length": b"\x01\x00",
        "two elements": framed(photo(), photo()),
        "no length": photo(),
    }.items():
        messages[f"encoded with {name}"] = infer(datatype="BYTES", shape=(1,), raw=(raw,))
    for name, message in messages.items():
        yield BadMessage(name, message.SerializeToString())
    for name, picture in bad_pictures().items():
        typed = {"bytes_contents": [picture]}
        for kind, message in {
            "raw": infer(datatype="BYTES", shape=(1,), raw=(framed(picture),)),
            "typed": infer(datatype="BYTES", shape=(1,), raw=(), contents=typed),
        }.items():
            body = message.SerializeToString()
            yield BadMessage(f"{kind} picture: {name}", body, codes=INVALID_OR_TOO_MUCH)
    many = infer(shape=(1_000_000, 1, 1, 3), raw=(bytes(3_000_000),))
    yield BadMessage("10⁶ pixels", many.SerializeToString(), codes=INVALID_OR_TOO_MUCH)
    empty = infer(datatype="BYTES", shape=(1_000_000,), raw=(bytes(4_000_000),))
    yield BadMessage("10⁶ empty pictures", empty.SerializeToString(), codes=INVALID_OR_TOO_MUCH)
    lost = ("NOT_FOUND",)
    yield BadMessage("no such model", infer(model_name="nope").SerializeToString(), codes=lost)
    yield BadMessage("no such version", infer(model_version="v99").SerializeToString(), codes=lost)
    nameless = infer(model_name="").SerializeToString()
    yield BadMessage("no model", nameless, codes=("NOT_FOUND", "INVALID_ARGUMENT"))
    for method, kind in (
        ("ModelReady", v2.ModelReadyRequest),
        ("ModelMetadata", v2.ModelMetadataRequest),
    ):
        yield BadMessage(f"{method} of nobody", kind(name="nope").SerializeToString(), method, lost)
    yield BadMessage("no such method", b"", "ModelTrain", ("UNIMPLEMENTED",))
    for method in ("ModelInfer", "ModelReady", "ModelMetadata"):
        yield BadMessage(f"{method} of broken wire", b"\xff\xff\xff\xff", method)
        yield BadMessage(f"{method} of a cut field", b"\x0a\x7fflowers", method)
        yield BadMessage(f"{method} of invalid utf-8", b"\x0a\x02\xff\xfe", method)


def generated(seed: int, count: int) -> Iterator[BadMessage]:
    """Damage good messages in ways that can't leave them good."""
    chance = random.Random(seed)
    ways: tuple[Callable[[random.Random], tuple[bytes, str]], ...] = (
        _cut_message, _cut_contents, _lying_shape, _lying_element,
    )  # fmt: skip
    for number in range(count):
        body, what = ways[number % len(ways)](chance)
        yield BadMessage(f"{number:03} {what}", body, codes=INVALID_OR_TOO_MUCH)


def _cut_message(chance: random.Random) -> tuple[bytes, str]:
    # The contents come last on the wire, so a cut inside them leaves a field without its end.
    body = infer().SerializeToString()
    at = len(body) - chance.randrange(1, 48)
    return body[:at], f"message cut at {at} of {len(body)}"


def _cut_contents(chance: random.Random) -> tuple[bytes, str]:
    size = chance.choice([chance.randrange(48), chance.randrange(49, 5_000)])
    return infer(raw=(bytes(size),)).SerializeToString(), f"contents of {size} for 48"


def _lying_shape(chance: random.Random) -> tuple[bytes, str]:
    shape = [1, 4, 4, 3]
    shape[chance.randrange(4)] = chance.choice([0, -1, 2**40, -(2**40), chance.randrange(5, 99)])
    return infer(shape=tuple(shape)).SerializeToString(), f"shape {shape}"


def _lying_element(chance: random.Random) -> tuple[bytes, str]:
    length = chance.choice([chance.randrange(len(photo())), chance.randrange(10**6, 2**32)])
    raw = struct.pack("<I", length) + photo()
    return infer(datatype="BYTES", shape=(1,), raw=(raw,)).SerializeToString(), f"length {length}"
