"""Each MUST of the Open Inference Protocol; docs/conformance.md says which test shows which."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import urllib3
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.serving.bad_messages import infer
from tests.serving.bad_requests import (
    BINARY,
    INFER,
    JSON,
    LENGTH,
    as_json,
    binary,
    bytes_input,
    framed,
    photo,
    uint8_input,
)
from tests.serving.conftest import Running
from tests.serving.tiny_release import CLASSES

ROOT = Path(__file__).parents[2]
OUTPUTS = {
    "label": "BYTES",
    "score": "FP32",
    "probabilities": "FP32",
    "abstain": "BOOL",
    "release": "BYTES",
}
SIZES = {"FP32": 4, "BOOL": 1}


@pytest.fixture(scope="module")
def stub(server: Running) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def got(server: Running, path: str) -> dict[str, Any]:
    status, body = server.get(path)
    assert status == 200, body
    return dict(json.loads(body))


def posted(
    server: Running, body: bytes, headers: dict[str, str] | None = None, path: str = INFER
) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    """Post, and return the answer's JSON, the bytes behind it, and its headers."""
    answer = urllib3.request(
        "POST", server.url + path, body=body, headers=headers or {"Content-Type": JSON}
    )
    assert answer.status == 200, answer.data
    length = int(answer.headers.get(LENGTH, len(answer.data)))
    return json.loads(answer.data[:length]), answer.data[length:], dict(answer.headers)


def refused(server: Running, body: bytes, path: str = INFER) -> str:
    status, said = server.send("POST", path, body, {"Content-Type": JSON})
    assert 400 <= status < 500
    assert set(json.loads(said)) == {"error"}
    return str(json.loads(said)["error"])


def test_server_live_is_answered(server: Running) -> None:
    assert got(server, "/v2/health/live")["live"] is True


def test_server_ready_is_answered(server: Running) -> None:
    assert got(server, "/v2/health/ready")["ready"] is True


def test_model_ready_names_the_model(server: Running) -> None:
    for path in ("/v2/models/flowers/ready", "/v2/models/flowers/versions/v1/ready"):
        assert got(server, path) == {"name": "flowers", "ready": True}


def test_server_metadata_has_name_version_and_extensions(server: Running) -> None:
    said = got(server, "/v2")
    assert isinstance(said["name"], str)
    assert isinstance(said["version"], str)
    assert "binary_tensor_data" in said["extensions"]


@pytest.mark.parametrize("path", ["/v2/models/flowers", "/v2/models/flowers/versions/v1"])
def test_model_metadata_describes_inputs_and_outputs(path: str, server: Running) -> None:
    said = got(server, path)
    assert said["name"] == "flowers"
    assert said["versions"] == ["v1"]
    assert said["platform"].startswith("onnx")
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in said["inputs"]}
    assert inputs["pictures"] == ("UINT8", [-1, -1, -1, 3])
    assert inputs["encoded"] == ("BYTES", [-1])
    outputs = {one["name"]: one["datatype"] for one in said["outputs"]}
    assert outputs == OUTPUTS
    shapes = {one["name"]: one["shape"] for one in said["outputs"]}
    assert shapes["probabilities"] == [-1, len(CLASSES)]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/nope",
        "/v2/models/flowers/versions/v99",
        "/v2/models/nope/ready",
        "/v2/models/flowers/versions/v99/ready",
        "/v2/nope",
    ],
)
def test_a_failure_has_an_error_status_and_an_error_object(path: str, server: Running) -> None:
    status, body = server.get(path)
    assert status == 404
    assert set(json.loads(body)) == {"error"}
    assert len(json.loads(body)["error"]) > 15


def test_an_id_that_is_given_is_returned(server: Running) -> None:
    said, _, _ = posted(server, as_json(uint8_input(), id="forty-two"))
    assert said["id"] == "forty-two"


def test_an_answer_names_its_model_and_version(server: Running) -> None:
    for path in (INFER, "/v2/models/flowers/versions/v1/infer"):
        said, _, _ = posted(server, as_json(uint8_input()), path=path)
        assert said["model_name"] == "flowers"
        assert said["model_version"] == "v1"


def test_without_outputs_all_are_returned(server: Running) -> None:
    said, _, _ = posted(server, as_json(uint8_input(count=2)))
    found = {one["name"]: one for one in said["outputs"]}
    assert {name: one["datatype"] for name, one in found.items()} == OUTPUTS
    for name, one in found.items():
        assert one["shape"] == ([2, len(CLASSES)] if name == "probabilities" else [2])
        assert len(one["data"]) == np.prod(one["shape"])


def test_only_the_outputs_that_are_asked_for_are_returned_in_their_order(server: Running) -> None:
    asked = [{"name": "score"}, {"name": "label"}]
    said, _, _ = posted(server, as_json(uint8_input(), outputs=asked))
    assert [one["name"] for one in said["outputs"]] == ["score", "label"]


def test_tensor_data_may_be_flat_or_nested_in_row_major_order(server: Running) -> None:
    flat = uint8_input(count=2)
    nested = {**flat, "data": np.array(flat["data"]).reshape(flat["shape"]).tolist()}
    first, second = (posted(server, as_json(one))[0]["outputs"] for one in (flat, nested))
    assert first == second


def test_strings_are_case_sensitive(server: Running) -> None:
    refused(server, as_json({**uint8_input(), "name": "Pictures"}))
    refused(server, as_json({**uint8_input(), "datatype": "uint8"}))
    refused(server, as_json(uint8_input(), outputs=[{"name": "Label"}]))
    refused(server, as_json(uint8_input()), path="/v2/models/Flowers/infer")


def test_shape_and_data_describe_the_whole_batch(server: Running) -> None:
    assert "shape" in refused(server, as_json({**uint8_input(), "shape": [2, 4, 4, 3]}))


def test_parameters_nobody_knows_are_no_error(server: Running) -> None:
    tensor = {**uint8_input(), "parameters": {"x": 1, "y": "z", "w": True}}
    asked = [{"name": "label", "parameters": {"x": 1}}]
    said, _, _ = posted(server, as_json(tensor, outputs=asked, parameters={"priority": 3}))
    assert said["outputs"]


def test_binary_data_follows_the_json_in_the_order_of_the_outputs(server: Running) -> None:
    body, headers = binary(
        "UINT8", [2, 4, 4, 3], bytes(96), parameters={"binary_data_output": True}
    )
    said, tail, found = posted(server, body, headers)
    assert found["content-type"] == BINARY
    assert [one["name"] for one in said["outputs"]] == list(OUTPUTS)
    for one in said["outputs"]:
        assert "data" not in one
        size = one["parameters"]["binary_data_size"]
        part, tail = tail[:size], tail[size:]
        if one["datatype"] == "BYTES":
            for _ in range(2):
                (length,) = struct.unpack_from("<I", part)
                part[4 : 4 + length].decode()
                part = part[4 + length :]
            assert not part
        else:
            assert size == SIZES[one["datatype"]] * np.prod(one["shape"])
    assert not tail


def test_binary_data_of_one_output_overrides_the_requests_default(server: Running) -> None:
    asked = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
        {"name": "score", "parameters": {"binary_data": True}},
    ]
    body = as_json(uint8_input(), outputs=asked, parameters={"binary_data_output": True})
    said, tail, _ = posted(server, body)
    label, probabilities, score = said["outputs"]
    assert label["data"][0] in CLASSES
    assert probabilities["parameters"]["binary_data_size"] == 4 * len(CLASSES)
    assert score["parameters"]["binary_data_size"] == 4
    assert len(tail) == 4 * len(CLASSES) + 4
    first = posted(server, as_json(uint8_input(), outputs=asked))[0]["outputs"]
    assert "data" in first[0]
    assert "data" in first[1]
    assert first[2]["parameters"] == {"binary_data_size": 4}


def test_an_answer_without_binary_data_is_plain_json(server: Running) -> None:
    body, headers = binary("BYTES", [1], framed(photo()))
    said, tail, found = posted(server, body, headers)
    assert found["content-type"].startswith(JSON)
    assert LENGTH.lower() not in found
    assert not tail
    assert said["outputs"]


def test_json_and_binary_give_the_same_answer(server: Running) -> None:
    body, headers = binary("BYTES", [1], framed(photo()))
    assert posted(server, body, headers)[0] == posted(server, as_json(bytes_input(photo())))[0]


def test_grpc_health(stub: GRPCInferenceServiceStub) -> None:
    assert stub.ServerLive(v2.ServerLiveRequest()).live
    assert stub.ServerReady(v2.ServerReadyRequest()).ready
    assert stub.ModelReady(v2.ModelReadyRequest(name="flowers")).ready
    assert stub.ModelReady(v2.ModelReadyRequest(name="flowers", version="v1")).ready


def test_grpc_metadata(stub: GRPCInferenceServiceStub) -> None:
    said = stub.ServerMetadata(v2.ServerMetadataRequest())
    assert said.name
    assert said.version
    assert "binary_tensor_data" in said.extensions
    model = stub.ModelMetadata(v2.ModelMetadataRequest(name="flowers", version="v1"))
    assert model.name == "flowers"
    assert list(model.versions) == ["v1"]
    assert model.platform.startswith("onnx")
    assert {one.name: one.datatype for one in model.outputs} == OUTPUTS
    assert {one.name: list(one.shape) for one in model.inputs} == {
        "pictures": [-1, -1, -1, 3],
        "encoded": [-1],
    }


def test_grpc_raw_contents_are_answered_raw(stub: GRPCInferenceServiceStub) -> None:
    said = stub.ModelInfer(infer(id="7"))
    assert (said.model_name, said.model_version, said.id) == ("flowers", "v1", "7")
    assert [one.name for one in said.outputs] == list(OUTPUTS)
    assert len(said.raw_output_contents) == len(said.outputs)
    assert not any(one.HasField("contents") for one in said.outputs)
    for one, raw in zip(said.outputs, said.raw_output_contents, strict=True):
        if one.datatype in SIZES:
            assert len(raw) == SIZES[one.datatype] * np.prod(one.shape)


def test_grpc_typed_contents_are_answered_and_agree_with_raw(
    stub: GRPCInferenceServiceStub,
) -> None:
    pixels = [(7 * at) % 256 for at in range(48)]
    raw = stub.ModelInfer(infer(raw=(bytes(pixels),), outputs=("probabilities",)))
    typed = stub.ModelInfer(
        infer(raw=(), contents={"uint_contents": pixels}, outputs=("probabilities",))
    )
    expected = np.frombuffer(raw.raw_output_contents[0], np.float32)
    if typed.raw_output_contents:
        found = np.frombuffer(typed.raw_output_contents[0], np.float32)
    else:
        found = np.array(typed.outputs[0].contents.fp32_contents, np.float32)
    np.testing.assert_array_equal(found, expected)


def test_grpc_returns_only_what_is_asked_for(stub: GRPCInferenceServiceStub) -> None:
    said = stub.ModelInfer(infer(outputs=("score", "label")))
    assert [one.name for one in said.outputs] == ["score", "label"]


def test_grpc_failures_are_statuses_with_a_message(stub: GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(infer(model_name="nope"))
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert "nope" in refusal.value.details()


def test_grpc_and_rest_agree(stub: GRPCInferenceServiceStub, server: Running) -> None:
    over_grpc = stub.ModelInfer(infer(datatype="BYTES", shape=(1,), raw=(framed(photo()),)))
    body, headers = binary("BYTES", [1], framed(photo()), parameters={"binary_data_output": True})
    _, tail, _ = posted(server, body, headers)
    assert b"".join(over_grpc.raw_output_contents) == tail


def test_the_table_in_the_docs_names_tests_that_exist() -> None:
    table = (ROOT / "docs/conformance.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests/serving").glob("test_*.py")
    )
    assert len(named) > 20
    assert not {name for name in named if f"def {name}(" not in tests}
