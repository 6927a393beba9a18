"""gRPC's ModelInferRequest read without copies gives what protobuf reads."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.inference.messages import read_infer
from linnet.inference.protocol import open_inference_pb2 as pb


def message(raw: list[bytes]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="flowers", id="7")
    request.inputs.add(name="pictures", datatype="UINT8", shape=[1, 2, 2, 3])
    request.outputs.add(name="label")
    request.raw_input_contents.extend(raw)
    return request


@pytest.mark.parametrize("raw", [[], [b""], [b"x" * 12], [b"a" * 200, b"b" * 70_000]], ids=len)
def test_raw_contents_are_found_and_the_rest_is_parsed(raw: list[bytes]) -> None:
    read = read_infer(message(raw).SerializeToString())
    assert read is not None
    assert [bytes(each) for each in read.raw] == raw
    assert read.message == message([])


def test_raw_contents_are_looked_at_where_they_lie() -> None:
    encoded = message([b"x" * 1000]).SerializeToString()
    read = read_infer(encoded)
    assert read is not None
    (raw,) = read.raw
    assert isinstance(raw, memoryview)
    assert raw.obj is encoded


def test_fields_in_another_order_are_found_too() -> None:
    first = pb.ModelInferRequest(raw_input_contents=[b"abc"]).SerializeToString()
    read = read_infer(first + message([]).SerializeToString())
    assert read is not None
    assert [bytes(each) for each in read.raw] == [b"abc"]
    assert read.message == message([])


def test_a_flood_of_fields_is_left_to_protobuf() -> None:
    raw = [b"x"] * 5000
    read = read_infer(message(raw).SerializeToString())
    assert read is not None
    assert list(read.raw) == raw


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_comes_is_read_as_protobuf_reads_it(encoded: bytes) -> None:
    try:
        expected = pb.ModelInferRequest.FromString(encoded)
    except Exception:
        assert read_infer(encoded) is None
        return
    read = read_infer(encoded)
    assert read is not None
    assert [bytes(each) for each in read.raw] == list(expected.raw_input_contents)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_message_is_read_as_protobuf_reads_it(data: st.DataObject) -> None:
    whole = bytearray(message([b"picture" * 3]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    encoded = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    read = read_infer(encoded)
    try:
        expected = pb.ModelInferRequest.FromString(encoded)
    except Exception:
        assert read is None
        return
    assert read is not None
    assert [bytes(each) for each in read.raw] == list(expected.raw_input_contents)
