"""The server does what its OpenAPI description says: schemathesis makes requests from it."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.conftest import Running

WANTED = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 25


@pytest.fixture(scope="module")
def described(server: Running) -> dict[str, Any]:
    status, body = server.get("/openapi.json")
    assert status == 200
    return dict(json.loads(body))


OPERATIONS = [
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models",
    "GET /v2/models/{model}",
    "GET /v2/models/{model}/ready",
    "POST /v2/models/{model}/infer",
    "POST /v2/repository/index",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/models/{model}:predict",
    "POST /predict/{model}",
    "GET /metrics",
    "GET /openapi.json",
]


def test_the_description_covers_every_address(described: dict[str, Any], server: Running) -> None:
    assert described["openapi"].startswith("3.1")
    found = {
        f"{method.upper()} {path}"
        for path, operations in described["paths"].items()
        for method in operations
    }
    assert set(OPERATIONS) <= found
    assert "POST /v2/models/{model}/versions/{version}/infer" in found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("name", OPERATIONS)
def test_requests_made_from_the_description_are_answered_as_it_says(
    name: str, mode: GenerationMode, described: dict[str, Any], unharmed: Running
) -> None:
    method, path = name.split()
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=unharmed.url)
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
        pytest.skip("takes nothing that could be wrong")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=WANTED)

    run()
