"""Requests that are wrong for certain: written by hand, and generated from a seed.

Each says what is wrong with it in its name. `statuses` are the HTTP answers that are right;
`after` is what the socket needs when no HTTP library would send such a thing.
"""

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.serving.photographs import photographs

INFER = "/v2/models/flowers/infer"
JSON = "application/json"
BINARY = "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Bad:
    """One bad HTTP request."""

    name: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})
    path: str = INFER
    method: str = "POST"
    statuses: tuple[int, ...] = (400,)
    says: str = ""

    def __str__(self) -> str:
        return self.name


def photo() -> bytes:
    return photographs()["flower.jpg"]


def text(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


def bytes_input(*pictures: bytes) -> dict[str, Any]:
    return {
        "name": "pictures",
        "datatype": "BYTES",
        "shape": [len(pictures)],
        "data": [text(picture) for picture in pictures],
    }


def uint8_input(count: int = 1, side: int = 4) -> dict[str, Any]:
    shape = [count, side, side, 3]
    values = [(7 * at) % 256 for at in range(count * side * side * 3)]
    return {"name": "pictures", "datatype": "UINT8", "shape": shape, "data": values}


def as_json(*inputs: object, **more: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def framed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary(
    datatype: str,
    shape: object,
    raw: bytes,
    *,
    size: object = None,
    length: object = None,
    **more: Any,
) -> tuple[bytes, dict[str, str]]:
    """A body with the binary extension and its headers; `size` and `length` lie when given."""
    parameters = (
        {} if size == "absent" else {"binary_data_size": len(raw) if size is None else size}
    )
    one = {"name": "pictures", "datatype": datatype, "shape": shape, "parameters": parameters}
    header = json.dumps({"inputs": [one], **more}).encode()
    headers = {"Content-Type": BINARY, LENGTH: str(len(header) if length is None else length)}
    return header + raw, headers


def png(width: int, height: int, data: bytes = b"\x78\x9c\x03\x00\x00\x00\x00\x01") -> bytes:
    """A PNG whose header claims a size that its data may not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def bomb() -> bytes:
    """A PNG of 20,000 × 20,000 pixels, with data for a tenth of them."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * 20_000)
    data = b"".join(packer.compress(row) for _ in range(2_000)) + packer.flush()
    return png(20_000, 20_000, data)


@cache
def bad_pictures() -> dict[str, bytes]:
    """Bytes that are no picture that can be answered."""
    jpeg = photo()
    small = png(8, 8)
    return {
        "no bytes": b"",
        "one byte": b"\xff",
        "text": b"hello, I am no picture",
        "zeros": bytes(1000),
        "half a jpeg": jpeg[: len(jpeg) // 2],
        "header of a jpeg": jpeg[:20],
        "jpeg without its start": jpeg[2:],
        "html": b"<!doctype html><script>alert(1)</script>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pdf": b"%PDF-1.7\n1 0 obj<<>>endobj\n%%EOF",
        "zip": b"PK\x03\x04" + bytes(60),
        "heic": b"\x00\x00\x00\x18ftypheic" + bytes(40),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "elf": b"\x7fELF\x02\x01\x01" + bytes(60),
        "polyglot of gif and javascript": b"GIF89a=1;alert(document.domain);//" + bytes(9),
        "polyglot of png and html": small[:33] + b"<html><body>" + small[33:45],
        "polyglot of bmp and shell": b"BM;exec /bin/sh;" + bytes(40),
        "png without pixels": small,
        "png of no width": png(0, 8),
        "png of half a header": small[:20],
        "png of 2 billion squared": png(2**31 - 1, 2**31 - 1),
        "png of 60,000 squared": png(60_000, 60_000),
        "png bomb": bomb(),
        "gif of 65,535 squared": b"GIF89a\xff\xff\xff\xff\x00\x00\x00"
        b",\x00\x00\x00\x00\xff\xff\xff\xff"
        b"\x00\x02\x02D\x01\x00;",
        "tiff that points to itself": b"II*\x00\x08\x00\x00\x00"
        b"\x01\x00\x00\x01\x04\x00\x01\x00\x00\x00"
        b"\x08\x00\x00\x00\x08\x00\x00\x00",
        "tiff without a directory": b"II*\x00\xff\xff\xff\x7f",
        "webp of lies": b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f" + bytes(30),
        "bmp of negative width": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, -8, 8, 1, 24, 0, 36, 0, 0, 0, 0),
        "ppm of a huge size": b"P6\n99999 99999\n255\n\x00",
        "exif only": b"\xff\xd8\xff\xe1\x00\x10Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xd9",
    }


def hand_made() -> Iterator[Bad]:
    yield from _not_json()
    yield from _wrong_structure()
    yield from _wrong_tensors()
    yield from _wrong_outputs()
    yield from _wrong_binary()
    yield from _wrong_pictures()
    yield from _wrong_addresses()
    yield from _wrong_predict()


def _not_json() -> Iterator[Bad]:
    good = as_json(bytes_input(photo()))
    pixel = b'{"inputs":[{"name":"pictures","datatype":"UINT8","shape":[1,1,1,3],"data":%b}]}'
    bodies = {
        "nothing": b"",
        "a space": b" ",
        "null": b"null",
        "a list": b"[]",
        "text": b'"pictures"',
        "a number": b"42",
        "true": b"true",
        "words": b"give me an answer",
        "form data": b"picture=rose.jpg&model=flowers",
        "xml": b"<?xml version='1.0'?><inputs/>",
        "single quotes": b"{'inputs': []}",
        "a trailing comma": b'{"inputs": [],}',
        "two documents": as_json(uint8_input()) * 2,
        "half a document": good[: len(good) // 2],
        "all but the last byte": good[:-1],
        "an open string": b'{"inputs": [{"name": "pic',
        "invalid utf-8": b'{"inputs": [{"name": "\xff\xfe"}]}',
        "overlong utf-8": b'{"inputs": [{"name": "\xc0\x80"}]}',
        "a raw zero byte": b'{"inputs": [{"name": "pic\x00tures"}]}',
        "a lone surrogate": rb'{"id": "\ud800", "inputs": []}',
        "utf-16": '{"inputs": []}'.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + b'{"inputs": []}',
        "nan": pixel % b"[NaN,0,0]",
        "infinity": pixel % b"[Infinity,0,0]",
        "1e999": pixel % b"[1e999,0,0]",
        "a number of 10,000 digits": b'{"inputs": [{"name":"pictures","datatype":"UINT8","shape":['
        + b"9" * 10_000
        + b'],"data":[0]}]}',
        "100,000 open brackets": b"[" * 100_000,
        "100,000 nested lists": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "50,000 nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "900 nested lists as data": pixel % (b"[" * 900 + b"0,0,0" + b"]" * 900),
        "gzip's magic": b"\x1f\x8b\x08\x00" + bytes(20),
    }
    for name, body in bodies.items():
        yield Bad(f"json is {name}", body, says="JSON" if name not in _JSON_BUT_WRONG else "")


_JSON_BUT_WRONG = {
    "null", "a list", "text", "a number", "true", "nan", "infinity", "1e999",
    "a number of 10,000 digits", "900 nested lists as data", "a lone surrogate",
    "100,000 open brackets", "100,000 nested lists", "50,000 nested objects", "nothing",
    "a byte order mark",
}  # fmt: skip


def _wrong_structure() -> Iterator[Bad]:
    good = uint8_input()
    for name, value in _WRONG_VALUES.items():
        yield Bad(f"inputs is {name}", json.dumps({"inputs": value}).encode(), says="input")
        if name != "an empty object":
            yield Bad(f"an input is {name}", as_json(value), says="input")
        if value not in ({}, None):
            yield Bad(f"parameters is {name}", as_json(good, parameters=value), says="parameters")
        if name != "text":
            named = as_json({**good, "name": value})
            yield Bad(f"an input's name is {name}", named, says="name")
            if value is not None:
                yield Bad(f"id is {name}", as_json(good, id=value), says="id")
    yield Bad("inputs is absent", b"{}", says="inputs")
    yield Bad("inputs is misspelt", json.dumps({"input": [good]}).encode(), says="inputs")
    yield Bad("inputs is empty", as_json(), says="input")
    yield Bad("two inputs of one name", as_json(good, good), says="pictures")
    yield Bad("an input that isn't there", as_json({**good, "name": "image"}), says="pictures")
    yield Bad("an input too many", as_json(good, {**good, "name": "x"}), says="pictures")
    yield Bad("an input in capitals", as_json({**good, "name": "PICTURES"}), says="pictures")
    for key in ("name", "datatype", "shape", "data"):
        without = {name: value for name, value in good.items() if name != key}
        yield Bad(f"an input without {key}", as_json(without), says=key)


_WRONG_VALUES: dict[str, Any] = {
    "null": None,
    "a number": 3,
    "text": "pictures",
    "true": True,
    "a fraction": 1.5,
    "an empty object": {},
    "a list of lists": [[]],
}


def _wrong_tensors() -> Iterator[Bad]:
    good = uint8_input()
    shapes: dict[str, Any] = {
        "null": None,
        "a number": 48,
        "text": "1,4,4,3",
        "empty": [],
        "negative": [-1, 4, 4, 3],
        "all negative": [-1, -4, -4, 3],
        "of fractions": [1.5, 4, 4, 3],
        "of text": ["1", "4", "4", "3"],
        "of truths": [True, 4, 4, 3],
        "of nulls": [None, 4, 4, 3],
        "nested": [[1, 4, 4, 3]],
        "zero pictures": [0, 4, 4, 3],
        "zero height": [1, 0, 4, 3],
        "zero width": [1, 4, 0, 3],
        "two channels": [1, 4, 6, 2],
        "four channels": [1, 4, 3, 4],
        "channels first": [1, 3, 4, 4],
        "flat": [48],
        "of three": [4, 4, 2],
        "of five": [1, 1, 4, 4, 3],
        "of 10,000": [1] * 10_000,
        "too large": [2, 4, 4, 3],
        "too small": [1, 4, 3, 3],
        "2⁶³": [2**63, 4, 4, 3],
        "2⁶⁴": [2**64, 4, 4, 3],
        "a product that wraps to its size": [2**62, 4, 4, 3],
        "a product that wraps to 48": [2**60 + 1, 16, 1, 3],
        "10⁶ tiny pictures": [1_000_000, 1, 1, 3],
        "10⁹ high": [1, 10**9, 1, 3],
    }
    for name, shape in shapes.items():
        body = as_json({**good, "shape": shape})
        if name in ("10⁶ tiny pictures", "10⁹ high"):
            yield Bad(f"a shape {name}", body, statuses=(413,), says="picture")
        else:
            yield Bad(f"a shape {name}", body, says="shape")
    for datatype in (
        None, 3, "", "uint8", "UINT16", "INT8", "INT64", "FP32", "FP16", "BOOL", "STRING", "bytes",
        "TENSOR", "float32", ["UINT8"], {}, "UINT8 ", "U" * 10_000,
    ):  # fmt: skip
        yield Bad(
            f"datatype {str(datatype)[:20]!r}",
            as_json({**good, "datatype": datatype}),
            says="datatype",
        )
    values = good["data"]
    data: dict[str, Any] = {
        "null": None,
        "a number": 7,
        "text": "AAAA",
        "an object": {"0": 0},
        "empty": [],
        "too short": values[:-1],
        "too long": [*values, 0],
        "with 256": [*values[:-1], 256],
        "with −1": [*values[:-1], -1],
        "with 10¹²": [*values[:-1], 10**12],
        "with 2⁷⁰": [*values[:-1], 2**70],
        "with a fraction": [*values[:-1], 0.5],
        "with text": [*values[:-1], "0"],
        "with a null": [*values[:-1], None],
        "with a truth": [*values[:-1], True],
        "with an object": [*values[:-1], {}],
        "with a list": [*values[:-1], [0]],
        "ragged": [[[[0, 0, 0]] * 4] * 3 + [[[0, 0, 0]] * 3]],
        "nested in another shape": [[[[0, 0, 0, 0]] * 3] * 4],
    }
    for name, value in data.items():
        yield Bad(f"uint8 data {name}", as_json({**good, "data": value}), says="data")
    encoded = bytes_input(photo())
    data = {
        "null": None,
        "a number": 7,
        "text": text(photo()),
        "an object": {},
        "empty": [],
        "one too many": encoded["data"] * 2,
        "a number in it": [3],
        "a null in it": [None],
        "a list in it": [["AAAA"]],
        "not base64": ["!!! this is no base64 !!!"],
        "base64 of odd length": ["AAAAA"],
        "base64 with a url's letters and a photo": ["-_-_" + encoded["data"][0]],
        "not ascii": ["日本語"],
        "a data url of text": ["data:text/plain;base64,aGVsbG8="],
    }
    for name, value in data.items():
        yield Bad(f"encoded data {name}", as_json({**encoded, "data": value}))
    for shape in ([2], [1, 2], [-1], [], [1, 2, 1], "1"):
        yield Bad(
            f"encoded data of shape {shape}", as_json({**encoded, "shape": shape}), says="shape"
        )
    million = {**encoded, "shape": [1_000_000], "data": [""] * 1_000_000}
    yield Bad("10⁶ empty pictures", as_json(million), statuses=(400, 413))
    yield Bad(
        "more pictures than a request may have",
        as_json({**encoded, "shape": [5_000], "data": ["AAAA"] * 5_000}),
        statuses=(400, 413),
    )
    yield Bad(
        "10⁶ one-pixel tensors",
        *binary("UINT8", [1_000_000, 1, 1, 3], bytes(3_000_000)),
        statuses=(400, 413),
    )
    yield Bad(
        "one picture of more pixels than allowed",
        *binary("UINT8", [1, 1, 60_000_000, 3], b"", size=180_000_000),
        statuses=(400, 413),
    )


def _wrong_outputs() -> Iterator[Bad]:
    good = uint8_input()
    outputs: dict[str, Any] = {
        "a number": 3,
        "text": "label",
        "an object": {"name": "label"},
        "of text": ["label"],
        "of nulls": [None],
        "of a nameless one": [{}],
        "of a number's name": [{"name": 3}],
        "not there": [{"name": "logits"}],
        "partly there": [{"name": "label"}, {"name": "nope"}],
        "in capitals": [{"name": "LABEL"}],
        "twice": [{"name": "label"}, {"name": "label"}],
        "with parameters of text": [{"name": "label", "parameters": "binary"}],
        "with binary_data of text": [{"name": "label", "parameters": {"binary_data": "yes"}}],
        "with binary_data of a number": [{"name": "label", "parameters": {"binary_data": 1}}],
        "100,000 of them": [{"name": f"x{at}"} for at in range(100_000)],
    }
    for name, value in outputs.items():
        yield Bad(f"outputs {name}", as_json(good, outputs=value))
    for value in ("true", 1, None, []):
        body = as_json(good, parameters={"binary_data_output": value})
        yield Bad(f"binary_data_output is {value!r}", body, says="binary_data_output")


def _wrong_binary() -> Iterator[Bad]:
    raw, shape = bytes(48), [1, 4, 4, 3]
    body, headers = binary("UINT8", shape, raw)
    length = int(headers[LENGTH])
    for lie in (
        0, 1, -1, length - 1, length + 1, len(body) + 1, 10**9, 2**63, 2**64, -(2**63), "",
        "abc", "1e2",
        "0x10", "1_0", "+", f"{length}.0", f"{length},{length}", "∞", "NaN",
    ):  # fmt: skip
        if str(lie).isascii():
            changed = {**headers, LENGTH: str(lie)}
            yield Bad(f"a header's length of {lie!r}", body, changed)
    without = {"Content-Type": BINARY}
    yield Bad("octets without a header's length", body, without, says=LENGTH)
    yield Bad("a header's length without a body", b"", headers)
    yield Bad("a header without its tensor", body[:length], headers)
    yield Bad("a tensor cut by one byte", body[:-1], headers)
    yield Bad("a byte too many", body + b"\0", headers)
    for size in (-1, 0, 47, 49, 10**9, 2**63, 2**64, "48", 48.5, True, None, [48], {}):
        if size is None:
            continue
        yield Bad(
            f"binary_data_size of {size!r}",
            *binary("UINT8", shape, raw, size=size),
        )
    one = {**uint8_input(), "parameters": {"binary_data_size": 48}}
    header = as_json(one)
    yield Bad(
        "data both in JSON and binary",
        header + raw,
        {"Content-Type": BINARY, LENGTH: str(len(header))},
        says="data",
    )
    yield Bad("neither data nor its size", *binary("UINT8", shape, raw, size="absent"))
    yield Bad(
        "a size in JSON without a header's length",
        as_json({**{k: v for k, v in one.items() if k != "data"}}),
    )
    for name, wrong in {
        "a length beyond the end": struct.pack("<I", 2**32 - 1) + photo(),
        "a length of one more": struct.pack("<I", len(photo()) + 1) + photo(),
        "a length of one less": struct.pack("<I", len(photo()) - 1) + photo(),
        "half a length": b"\x01\x00",
        "no elements": b"",
        "two elements for one": framed(photo(), photo()),
        "a length in the wrong order": struct.pack(">I", len(photo())) + photo(),
        "no length at all": photo(),
        "an empty element": framed(b""),
    }.items():
        yield Bad(f"encoded binary with {name}", *binary("BYTES", [1], wrong))
    yield Bad("one element for two", *binary("BYTES", [2], framed(photo())))
    yield Bad("a binary tensor of text", *binary("FP32", shape, bytes(192)), says="datatype")
    yield Bad(
        "a binary output that isn't there",
        *binary("UINT8", shape, raw, outputs=[{"name": "z", "parameters": {"binary_data": True}}]),
        says="output",
    )


def _wrong_pictures() -> Iterator[Bad]:
    for name, picture in bad_pictures().items():
        large = (400, 413, 422)
        yield Bad(f"a picture in JSON: {name}", as_json(bytes_input(picture)), statuses=large)
        yield Bad(
            f"a picture in octets: {name}", *binary("BYTES", [1], framed(picture)), statuses=large
        )
    yield Bad(
        "the second picture of three is broken",
        as_json(bytes_input(photo(), b"broken", photo())),
        statuses=(400, 422),
    )


def _wrong_addresses() -> Iterator[Bad]:
    good = as_json(uint8_input())
    for path in (
        "/v2/models/nope/infer", "/v2/models//infer", "/v2/models/flowers/versions/v99/infer",
        "/v2/models/flowers/versions//infer", "/v2/models/../../etc/passwd/infer",
        "/v2/models/%2e%2e%2f%2e%2e/infer", "/v2/models/flowers%00/infer",
        "/v2/models/%ff%fe/infer",
        "/v2/models/FLOWERS/infer", "/v2/models/" + "x" * 4_000 + "/infer", "/v2/nope", "/",
        "/v2/models/flowers/infer/x",
    ):  # fmt: skip
        yield Bad(f"posting to {path[:50]}", good, path=path, statuses=(404, 405, 400, 414))
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        yield Bad(f"{method} on infer", good, method=method, statuses=(405,))
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/flowers", "/metrics"):
        yield Bad(f"posting to {path}", good, path=path, statuses=(405,))
    for path in ("/v2/models/nope", "/v2/models/nope/ready", "/v2/models/flowers/versions/v99",
                 "/v2/models/flowers/versions/v99/ready"):  # fmt: skip
        yield Bad(f"getting {path}", path=path, method="GET", headers={}, statuses=(404,))
    for kind in ("text/plain", "text/html", "application/xml", "image/jpeg", "multipart/form-data",
                 "application/x-www-form-urlencoded", "nonsense"):  # fmt: skip
        yield Bad(f"content type {kind}", good, {"Content-Type": kind}, statuses=(400, 415))
    for coding in ("gzip", "br", "nonsense"):
        yield Bad(
            f"content coding {coding} that isn't",
            good,
            {"Content-Type": JSON, "Content-Encoding": coding},
            statuses=(400, 415),
        )


def _wrong_predict() -> Iterator[Bad]:
    for name, picture in bad_pictures().items():
        yield Bad(
            f"a picture posted plainly: {name}",
            picture,
            {"Content-Type": "image/jpeg"},
            path="/predict/flowers",
            statuses=(400, 413, 415, 422),
        )
    yield Bad(
        "plain to nobody", photo(), {"Content-Type": "image/jpeg"}, "/predict/nope", statuses=(404,)
    )
    yield Bad(
        "plain text",
        b"hello",
        {"Content-Type": "text/plain"},
        "/predict/flowers",
        statuses=(400, 415),
    )
    for body in (
        {}, {"url": ""}, {"url": 3}, {"url": None}, {"url": "file:///etc/passwd"},
        {"url": "ftp://x/y.jpg"},
        {"url": "http://127.0.0.1:1/x.jpg"}, {"url": "http://169.254.169.254/latest/meta-data"},
        {"url": "http://[::1]/x.jpg"}, {"url": "//x"}, {"url": "javascript:alert(1)"}, [], "x",
        {"url": "http://a" + "b" * 9999},
    ):  # fmt: skip
        yield Bad(
            f"a url that may not be fetched: {json.dumps(body)[:50]}",
            json.dumps(body).encode(),
            path="/predict/flowers",
            statuses=(400, 403, 415),
        )
    for body in (
        {}, {"instances": None}, {"instances": 3}, {"instances": []}, {"instances": [None]},
        {"instances": [3]},
        {"instances": [{}]}, {"instances": [{"b64": 3}]}, {"instances": [{"b64": "!!"}]},
        {"instances": [{"b64": ""}]},
        {"instances": [[[[0, 0, 0]], [[0, 0]]]]}, {"instances": [{"b64": "AAAA"}]},
        {"instance": []}, [], "x",
        {"instances": [{"image_bytes": {"b64": 3}}]}, {"instances": ["x"] * 100_000},
    ):  # fmt: skip
        yield Bad(
            f"v1: {json.dumps(body)[:50]}",
            json.dumps(body).encode(),
            path="/v1/models/flowers:predict",
            statuses=(400, 413, 422),
        )
    yield Bad("v1 to nobody", b'{"instances": []}', path="/v1/models/nope:predict", statuses=(404,))


def generated(seed: int, count: int) -> Iterator[Bad]:
    """Damage good requests in ways that can't leave them good."""
    chance = random.Random(seed)
    ways = (_cut_json, _wrong_field, _lost_field, _lying_shape, _cut_binary, _lying_size,
            _lying_element, _bad_base64, _bad_value, _noise)  # fmt: skip
    for number in range(count):
        way = ways[number % len(ways)]
        body, headers, what = way(chance)
        yield Bad(f"{number:03} {what}", body, headers, statuses=(400, 413, 415, 422))


Damaged = tuple[bytes, dict[str, str], str]
_AS_JSON = {"Content-Type": JSON}


def _good(chance: random.Random) -> dict[str, Any]:
    return chance.choice([uint8_input, lambda: bytes_input(photo())])()


def _cut_json(chance: random.Random) -> Damaged:
    body = as_json(_good(chance))
    at = chance.randrange(1, len(body) - 1)
    return body[:at], _AS_JSON, f"json cut at {at}"


def _wrong_field(chance: random.Random) -> Damaged:
    tensor, key = _good(chance), chance.choice(["name", "datatype", "shape", "data"])
    value = chance.choice([None, chance.random(), -chance.randrange(9), {"a": []}, True, [[]], ""])
    return as_json({**tensor, key: value}), _AS_JSON, f"{key} is {value!r}"


def _lost_field(chance: random.Random) -> Damaged:
    tensor, key = _good(chance), chance.choice(["name", "datatype", "shape", "data"])
    del tensor[key]
    renamed = chance.choice([key.upper(), key + "s", "_" + key])
    return as_json({**tensor, renamed: 1}), _AS_JSON, f"{key} is called {renamed}"


def _lying_shape(chance: random.Random) -> Damaged:
    tensor = uint8_input()
    at = chance.randrange(4)
    value = chance.choice([0, -1, -(2**40), 2**40, 2**64 + 1, chance.randrange(5, 99)])
    tensor["shape"][at] = value
    if chance.random() < 0.5:
        return (*binary("UINT8", tensor["shape"], bytes(48)), f"binary shape [{at}] is {value}")
    return as_json(tensor), _AS_JSON, f"shape [{at}] is {value}"


def _cut_binary(chance: random.Random) -> Damaged:
    body, headers = chance.choice(
        [binary("UINT8", [1, 4, 4, 3], bytes(48)), binary("BYTES", [1], framed(photo()))]
    )
    at = chance.randrange(1, len(body))
    return body[:at], headers, f"octets cut at {at} of {len(body)}"


def _lying_size(chance: random.Random) -> Damaged:
    size = chance.choice(
        [chance.randrange(48), chance.randrange(49, 10**6), -chance.randrange(1, 99)]
    )
    return (*binary("UINT8", [1, 4, 4, 3], bytes(48), size=size), f"binary_data_size of {size}")


def _lying_element(chance: random.Random) -> Damaged:
    picture = photo()
    length = chance.choice(
        [chance.randrange(len(picture)), chance.randrange(len(picture) + 1, 2**32)]
    )
    raw = struct.pack("<I", length) + picture
    return (*binary("BYTES", [1], raw), f"an element's length of {length}")


def _bad_base64(chance: random.Random) -> Damaged:
    tensor = bytes_input(photo())
    encoded = tensor["data"][0]
    at = chance.randrange(len(encoded) - 4)
    stray = chance.choice(["!", "é", "\n\0", "%", "\\", "*", "€"])
    tensor["data"] = [encoded[:at] + stray + encoded[at + 1 :]]
    return as_json(tensor), _AS_JSON, f"{stray!r} at {at} of base64"


def _bad_value(chance: random.Random) -> Damaged:
    tensor = uint8_input()
    at = chance.randrange(48)
    value = chance.choice([256, -1, 0.5, "1", None, [1], {}, 10**30, False])
    tensor["data"][at] = value
    return as_json(tensor), _AS_JSON, f"data[{at}] is {value!r}"


def _noise(chance: random.Random) -> Damaged:
    noise = chance.randbytes(chance.randrange(1, 2_000))
    if chance.random() < 0.5:
        return noise, _AS_JSON, f"{len(noise)} bytes of noise as JSON"
    length = chance.randrange(len(noise) + 1)
    return noise, {"Content-Type": BINARY, LENGTH: str(length)}, f"{len(noise)} bytes of noise"


Cases = Callable[[], Iterator[Bad]]
