"""The YAML that kubectl users paste: known to KServe, restricted, and refused out of order."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.schemas import Manifest, pods, problems, read, unrestricted

SERVING = Path(__file__).parents[2] / "serving"
OUT = ("1-dark", "2-weight-10", "3-weight-50", "4-weight-100", "5-promote")


class Refused(Exception):
    """A JSON patch's test failed, or its path isn't there."""


@pytest.fixture
def service() -> Manifest:
    (service,) = read(SERVING / "inferenceservice.yaml")
    return dict(service)


@pytest.mark.parametrize("name", ["runtime.yaml", "inferenceservice.yaml"])
def test_kserve_knows_every_field(name: str) -> None:
    for manifest in read(SERVING / name):
        assert problems(manifest) == []


def test_a_misspelt_field_is_found(service: Manifest) -> None:
    service["spec"]["predictor"]["model"]["storageURI"] = "s3://linnet/releases/flowers/v1"
    assert problems(service) == ["InferenceService.spec.predictor.model.storageURI is unknown"]


def test_the_server_runs_in_a_restricted_namespace() -> None:
    (runtime,) = read(SERVING / "runtime.yaml")
    assert [unrestricted(pod) for pod in pods(runtime)] == [[]]


def test_the_kustomization_pins_the_image_that_the_runtime_names() -> None:
    (runtime,) = read(SERVING / "runtime.yaml")
    (kustomization,) = read(SERVING / "kustomization.yaml")
    (pin,) = kustomization["images"]
    name, _, tag = runtime["spec"]["containers"][0]["image"].partition(":")
    assert name == pin["name"]
    assert tag == str(pin["newTag"])
    assert tag != "latest"


def test_the_moves_promote_a_canary(service: Manifest) -> None:
    weights = []
    for move in OUT:
        service = moved(service, move)
        assert problems(service) == []
        weights += [canary["trafficPercent"] for canary in service["spec"].get("canary", ())]
    assert weights == [0, 10, 50, 100]
    predictor = service["spec"]["predictor"]
    assert predictor["name"] == "v2"
    assert predictor["model"]["storageUri"] == "s3://linnet/releases/flowers/v2"


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_canary_is_taken_back_from_every_weight(service: Manifest, steps: int) -> None:
    before = copy.deepcopy(service)
    for move in (*OUT[:steps], "back-1-weight-0", "back-2-remove"):
        service = moved(service, move)
    assert service == before


@pytest.mark.parametrize(
    ("done", "move"),
    [
        ((), "2-weight-10"),
        ((), "5-promote"),
        ((), "back-1-weight-0"),
        ((), "back-2-remove"),
        (OUT[:1], "1-dark"),
        (OUT[:1], "5-promote"),
        (OUT[:3], "5-promote"),
        (OUT[:3], "back-2-remove"),
        (OUT, "5-promote"),
        (OUT, "1-dark"),
    ],
)
def test_a_move_out_of_order_is_refused(
    service: Manifest, done: tuple[str, ...], move: str
) -> None:
    for earlier in done:
        service = moved(service, earlier)
    with pytest.raises(Refused):
        moved(service, move)


def test_the_guide_names_every_move() -> None:
    guide = (SERVING.parent / "docs" / "canary.md").read_text(encoding="utf-8")
    for move in (SERVING / "canary").iterdir():
        assert f"patch {move.name}" in guide


def moved(manifest: Manifest, move: str) -> Manifest:
    """Apply a JSON patch as the API server does (RFC 6902; a test of null passes on nothing)."""
    changed = copy.deepcopy(manifest)
    text = (SERVING / "canary" / f"{move}.yaml").read_text(encoding="utf-8")
    for operation in yaml.safe_load(text):
        _apply(changed, **operation)
    return changed


def _apply(document: Any, op: str, path: str, value: Any = None) -> None:
    *parents, last = (int(part) if part.isdigit() else part for part in path[1:].split("/"))
    for part in parents:
        document = _at(document, part)
        if document is None:
            raise Refused(path)
    if op == "test" and _at(document, last) != value:
        raise Refused(path)
    if op in ("replace", "remove") and _at(document, last) is None:
        raise Refused(path)
    if op in ("replace", "add"):
        document[last] = value
    if op == "remove":
        del document[last]


def _at(document: Any, part: int | str) -> Any:
    if isinstance(document, list):
        return document[part] if isinstance(part, int) and part < len(document) else None
    return document.get(part)
