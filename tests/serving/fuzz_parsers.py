"""Parsers against whatever bytes: coverage-guided by atheris, for a bounded time.

    make fuzz FUZZ_S=60

The same functions are called by test_fuzz.py with bytes that hypothesis makes.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from linnet.errors import RequestError
from linnet.inference import v1, v2
from linnet.inference.messages import read_infer
from linnet.inference.protocol import open_inference_pb2 as pb

LIMITS = v2.Limits(pictures=16, pixels=1_000_000)


def infer_body(data: bytes) -> None:
    """A body of V2; the first two bytes say where its JSON ends, 0xFFFF that all is JSON."""
    length, body = int.from_bytes(data[:2], "little"), data[2:]
    try:
        request = v2.parse_request(body, None if length == 0xFFFF else length, LIMITS)
    except RequestError as error:
        check_refusal(error)
        return
    check_pictures(request.pixels, request.encoded)
    assert request.outputs
    assert all(wanted.name in v2.OUTPUTS for wanted in request.outputs)


def v1_body(data: bytes) -> None:
    """A body of V1's :predict."""
    try:
        pixels, encoded = v1.parse_request(v2.parse_json(data), LIMITS)
    except RequestError as error:
        check_refusal(error)
        return
    check_pictures(pixels, encoded)


def message(data: bytes) -> None:
    """A message of gRPC: what we read off the wire is what protobuf reads."""
    found = read_infer(data)
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except Exception:
        assert found is None, "protobuf refuses what we take"
        return
    if found is None:
        return
    assert [bytes(raw) for raw in found.raw] == list(expected.raw_input_contents)
    del expected.raw_input_contents[:]
    del found.message.raw_input_contents[:]
    assert found.message.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def tensor(data: bytes) -> None:
    """The elements of a BYTES tensor."""
    described = v2.Tensor("encoded", "BYTES", (data[0] % 20,) if data else (1,), 0)
    described = v2.Tensor("encoded", "BYTES", described.shape, described.shape[0])
    try:
        found = v2.encoded_from(described, data[1:], LIMITS)
    except RequestError as error:
        check_refusal(error)
        return
    assert len(found) == described.count
    assert sum(len(one) + 4 for one in found) == len(data) - 1


def check_refusal(error: RequestError) -> None:
    assert 400 <= error.status < 500
    assert 10 < len(str(error)) < 2_000
    str(error).encode()


def check_pictures(pixels: object, encoded: object) -> None:
    assert (pixels is None) != (encoded is None)
    if pixels is None:
        assert 0 < len(encoded) <= LIMITS.pictures  # type: ignore[arg-type]
    else:
        assert pixels.dtype == "uint8"  # type: ignore[attr-defined]
        assert pixels.shape[3] == 3  # type: ignore[attr-defined]
        assert 0 < pixels.shape[0] <= LIMITS.pictures  # type: ignore[attr-defined]
        assert pixels.shape[1] * pixels.shape[2] <= LIMITS.pixels  # type: ignore[attr-defined]


TARGETS = (infer_body, v1_body, message, tensor)


def one(data: bytes) -> None:
    """Choose a target by the first byte."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def write_seeds(folder: Path) -> None:
    """Write good and bad requests for the fuzzer to begin with."""
    from tests.serving import bad_messages, bad_requests
    from tests.serving.photographs import opened, saved

    small = saved(opened().resize((20, 20)), "JPEG")
    bodies = [
        bad_requests.as_json(bad_requests.uint8_input()),
        bad_requests.as_json(bad_requests.bytes_input(small)),
        *(bad.body for bad in bad_requests.generated(1, 60)),
    ]
    octets = [
        bad_requests.binary("UINT8", [1, 4, 4, 3], bytes(48)),
        bad_requests.binary("BYTES", [1], bad_requests.framed(small)),
    ]
    raw = (bad_requests.framed(small),)
    messages = [
        bad_messages.infer(),
        bad_messages.infer(datatype="BYTES", shape=(1,), raw=raw, outputs=("label",)),
        bad_messages.infer(raw=(), contents={"uint_contents": [7] * 48}),
    ]
    seeds = [b"\0\xff\xff" + body for body in bodies]
    for body, headers in octets:
        length = int(headers[bad_requests.LENGTH]).to_bytes(2, "little")
        seeds.append(b"\0" + length + body)
    seeds += [b"\2" + one.SerializeToString() for one in messages]
    seeds.append(b"\1" + b'{"instances": [{"b64": "AAAA"}, [[[0, 0, 0]]]]}')
    seeds.append(b"\3\2" + bad_requests.framed(b"ab", b"c"))
    for number, seed in enumerate(seeds):
        (folder / str(number)).write_bytes(seed[:20_000])


def main() -> None:
    """Fuzz until told to stop; arguments are libFuzzer's, such as -max_total_time=60."""
    import atheris

    with TemporaryDirectory(prefix="linnet-fuzz-") as seeds:
        write_seeds(Path(seeds))
        _fuzz(atheris, [*sys.argv, seeds])


def _fuzz(atheris: Any, arguments: list[str]) -> None:

    for module in (v2, v1, sys.modules["linnet.inference.messages"]):
        for name, value in vars(module).items():
            if callable(value) and getattr(value, "__module__", "") == module.__name__:
                try:
                    setattr(module, name, atheris.instrument_func(value))
                except (TypeError, AttributeError):
                    continue  # a class
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
