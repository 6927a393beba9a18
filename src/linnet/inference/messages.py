"""ModelInferRequest off the wire, without a copy of the pictures in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from linnet.inference.protocol import open_inference_pb2 as pb
from linnet.inference.v2 import Buffer

_RAW_CONTENTS: Final = 7 << 3 | 2
_MOST_FIELDS: Final = 256


@dataclass(frozen=True, slots=True)
class Infer:
    """A ModelInferRequest whose raw contents still lie in the bytes that came over the wire."""

    message: Any
    raw: Sequence[Buffer]
    size: int


def read_infer(encoded: bytes) -> Infer | None:
    """Return a ModelInferRequest without copying its raw contents; None for what is none.

    Walks the outermost fields and leaves all but `raw_input_contents` to protobuf. Whatever is
    unusual is left to protobuf as a whole.
    Source: https://protobuf.dev/programming-guides/encoding/
    """
    view = memoryview(encoded)
    raw: list[Buffer] = []
    rest: list[memoryview] = []
    at = begun = 0
    try:
        for _ in range(_MOST_FIELDS):
            if at == len(encoded):
                rest.append(view[begun:])
                message = pb.ModelInferRequest.FromString(b"".join(rest))
                return Infer(message, raw, len(encoded))
            tag = encoded[at]
            size, start = _varint(encoded, at + 1)
            end = start + size
            # One byte of tag with the wire type for lengths, and a length that is there.
            if tag & 0x87 != 2 or end > len(encoded):
                break
            if tag == _RAW_CONTENTS:
                rest.append(view[begun:at])
                raw.append(view[start:end])
                begun = end
            at = end
        whole = pb.ModelInferRequest.FromString(encoded)
        return Infer(whole, whole.raw_input_contents, len(encoded))
    except (DecodeError, IndexError):
        return None


def _varint(encoded: bytes, at: int) -> tuple[int, int]:
    """Return a length and where what follows it begins."""
    value = shift = 0
    while True:
        byte = encoded[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 35:
            raise IndexError("a length of more than 5 bytes")
