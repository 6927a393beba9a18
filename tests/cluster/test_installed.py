"""The platform on a real cluster: healthy, and a model behind its gateway by REST and gRPC."""

import json
import time
import urllib.parse
import uuid
from collections.abc import Iterator

import grpc
import pytest
import urllib3

from linnet.inference.protocol import open_inference_pb2 as pb
from linnet.rollout.cluster import Cluster
from linnet.stores.connections import Connections
from manifests.install import checks
from manifests.install.kubectl import Kubectl
from manifests.install.waiting import is_ready
from tests.cluster.serving_here import (
    GATEWAY,
    NAMESPACE,
    Model,
    pictures,
    request_body,
    store_connections,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAMESPACES = ("cert-manager", "envoy-gateway-system", "kserve", "linnet-platform", "kubeflow")


@pytest.fixture(scope="module")
def served(
    cluster: Cluster, store_url: str, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """Yield a model with one pod that answers through the gateway."""
    folder = tmp_path_factory.mktemp("served")
    connections: Connections = store_connections(cluster, store_url, folder)
    model = Model(f"t{uuid.uuid4().hex[:6]}", cluster, connections, folder / "releases")
    model.release("v1")
    model.serve("v1", replicas=1)
    kubectl.run(
        *("wait", f"inferenceservice/{model.name}", "-n", NAMESPACE),
        *("--for=condition=Ready", "--timeout=300s"),
    )
    wait_for_answers(model)
    yield model
    model.remove()


def wait_for_answers(model: Model) -> None:
    """Wait until the gateway has taken up the model's route."""
    deadline = time.monotonic() + 60
    while (answer := get(model, "/ready")).status != 200:
        assert time.monotonic() < deadline, f"the gateway says {answer.status} {answer.data!r}"
        time.sleep(0.2)


def get(model: Model, path: str) -> urllib3.BaseHTTPResponse:
    url = f"{GATEWAY}/v2/models/{model.name}{path}"
    return urllib3.request("GET", url, headers={"Host": model.host}, retries=False)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_everything_that_the_platform_runs_is_ready(kubectl: Kubectl, namespace: str) -> None:
    found = kubectl.items("deployments,statefulsets,daemonsets", namespace)
    assert found, f"nothing runs in {namespace}: make platform"
    assert [one["metadata"]["name"] for one in found if not is_ready(one)] == []


def test_kserve_moves_traffic_and_the_gateway_has_an_address(kubectl: Kubectl) -> None:
    checks.check_kserve(kubectl)
    assert checks.what_gateway_lacks(kubectl.get("gateway", checks.GATEWAY, "kserve") or {}) == ""


def test_a_model_tells_its_release_through_the_gateway(served: Model) -> None:
    answer = json.loads(get(served, "").data)
    assert (answer["name"], answer["versions"]) == (served.name, ["v1"])


def test_the_gateway_carries_a_v2_request_by_rest(served: Model) -> None:
    headers = {"Host": served.host, "Content-Type": "application/json"}
    url = f"{GATEWAY}/v2/models/{served.name}/infer"
    answer = urllib3.request("POST", url, body=request_body(), headers=headers, retries=False)
    assert answer.status == 200, answer.data
    outputs = {one["name"]: one["data"] for one in json.loads(answer.data)["outputs"]}
    assert outputs["release"] == [f"{served.name}/v1"]
    assert len(outputs["label"]) == 1


def test_the_gateway_carries_a_v2_request_by_grpc(served: Model) -> None:
    picture = pictures()["2-flower.jpg"]
    request = pb.ModelInferRequest(model_name=served.name)
    request.inputs.add(name="encoded", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
    target = urllib.parse.urlsplit(GATEWAY).netloc
    options = [("grpc.default_authority", served.host)]
    with grpc.insecure_channel(target, options=options) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        answer = infer(request, timeout=30)
    assert answer.model_name == served.name
    assert "probabilities" in [output.name for output in answer.outputs]


def test_a_request_to_another_host_reaches_no_model(served: Model) -> None:
    url = f"{GATEWAY}/v2/models/{served.name}"
    answer = urllib3.request("GET", url, headers={"Host": "nobody.example.com"}, retries=False)
    assert answer.status == 404


def test_a_model_pod_is_restricted_and_holds_no_token(served: Model, kubectl: Kubectl) -> None:
    pods = kubectl.items("pods", NAMESPACE, selector=f"app=isvc.{served.name}-v1-predictor")
    assert len(pods) == 1
    volumes = [volume for volume in pods[0]["spec"]["volumes"] if "projected" in volume]
    assert volumes == []
