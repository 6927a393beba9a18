"""The server does what its OpenAPI description says: schemathesis makes requests from it."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.failures import Failure  # noqa: F401

from tests.serving.conftest import Running
