"""The server's REST side in OpenAPI's words, for clients that are generated and for tests."""

from collections.abc import Sequence
from typing import Any

from linnet import __version__
from linnet.inference.feedback import MOST_LABELS
from linnet.inference.settings import ServeSettings
from linnet.inference.v2 import ENCODED, OUTPUTS, PIXELS

_JSON = "application/json"
_OCTETS = "application/octet-stream"
_ERRORS = {
    "400": "The request is not right; the message says what to change",
    "401": "A token is needed",
    "403": "This is turned off",
    "404": "There is no such model or version",
    "405": "Another method is needed",
    "408": "The request was not sent in time",
    "413": "The body, a picture or the number of pictures is too large",
    "414": "The address is too long",
    "415": "The body is of another type than is read here",
    "429": "Too much is waiting already: try again after Retry-After seconds",
    "431": "The head is too large",
    "500": "Something went wrong in the server",
    "503": "Not ready: try again after Retry-After seconds",
    "504": "There was no answer in time",
}


def description(models: Sequence[str], settings: ServeSettings) -> dict[str, Any]:
    """Return the OpenAPI document of a server with these models."""
    secured = settings.token is not None
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Linnet's model server",
            "version": __version__,
            "description": "Pictures in, labels and probabilities out. The Open Inference "
            "Protocol (V2), V1's :predict, and /predict for people with curl.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v2/health/live": {"get": _look("live", "Does the server live?", _flag("live"))},
            "/v2/health/ready": {
                "get": _look("ready", "Do all models answer?", _flag("ready"), also=("503",))
            },
            "/v2": {"get": _look("server", "The server's name and extensions", _object())},
            "/v2/models": {"get": _look("models", "The names of all models", _object("models"))},
            "/v2/models/{model}": {
                "get": _look("model", "A model's inputs and outputs", _ref("Model"), model=models)
            },
            "/v2/models/{model}/ready": {
                "get": _look("modelReady", "Does it answer?", _flag("ready"), model=models)
            },
            "/v2/models/{model}/infer": {"post": _infer(models)},
            "/v2/models/{model}/versions/{version}": {
                "get": _versioned(_look("version", "A version's inputs and outputs", _ref("Model")))
            },
            "/v2/models/{model}/versions/{version}/ready": {
                "get": _versioned(_look("versionReady", "Does it answer?", _flag("ready")))
            },
            "/v2/models/{model}/versions/{version}/infer": {
                "post": _versioned(_infer(models) | {"operationId": "inferVersion"})
            },
            "/predict/{model}": {"post": _predict(models)},
            "/v1/models": {"get": _look("modelsV1", "The names of models", _object("models"))},
            "/v1/models/{model}": {
                "get": _look("modelV1", "Is there such a model?", _flag("ready"), model=models)
            },
            "/v1/models/{model}:predict": {"post": _predict_v1(models)},
            "/v2/repository/index": {"post": _index()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _look("openapi", "This document", _object())},
        },
        "components": {"schemas": _schemas(settings), "responses": _errors()},
    }
    if settings.repository_api:
        for what in ("load", "unload"):
            operation = _look(what, f"{what.capitalize()} a model", _object(), model=models)
            document["paths"][f"/v2/repository/models/{{model}}/{what}"] = {"post": operation}
    if settings.feedback:
        document["paths"]["/feedback/{model}"] = {"post": _feedback(models)}
    if secured:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"key": []}]
        for open_path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
            document["paths"][open_path]["get"]["security"] = []
    return document


def _look(
    name: str,
    summary: str,
    schema: dict[str, Any],
    *,
    model: Sequence[str] | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    ok = {_JSON: {"schema": schema}}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": _responses(ok),
    }
    for status in also:
        operation["responses"][status] = {"description": "No", "content": ok}
    if model is not None:
        operation["parameters"] = [_model(model)]
    return operation


def _infer(models: Sequence[str]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "operationId": "infer",
        "summary": "Answer pictures (V2)",
        "description": "JSON, or JSON and binary tensors behind it with "
        "Inference-Header-Content-Length.",
        "parameters": [
            _model(models),
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "description": "length of the JSON in front of binary tensors, bytes",
                "schema": {"type": "integer", "minimum": 1},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _ref("InferRequest")}, _OCTETS: binary},
        },
        "responses": _responses({_JSON: {"schema": _ref("InferResponse")}, _OCTETS: binary}),
    }


def _predict(models: Sequence[str]) -> dict[str, Any]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    named = {
        "oneOf": [
            _object("url", of={"type": "string", "format": "uri"}),
            _object("b64", of={"type": "string", "contentEncoding": "base64"}),
        ]
    }
    types = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif")
    return {
        "operationId": "predict",
        "summary": "Answer one picture, posted as it is or named by URL",
        "parameters": [_model(models)],
        "requestBody": {
            "required": True,
            "content": {**dict.fromkeys((*types, _OCTETS), picture), _JSON: {"schema": named}},
        },
        "responses": _responses({_JSON: {"schema": _ref("Prediction")}}),
    }


def _predict_v1(models: Sequence[str]) -> dict[str, Any]:
    predictions = {"type": "array", "items": _ref("Prediction")}
    return {
        "operationId": "predictV1",
        "summary": "Answer pictures (V1)",
        "parameters": [_model(models)],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _ref("PredictRequest")}},
        },
        "responses": _responses({_JSON: {"schema": _object("predictions", of=predictions)}}),
    }


def _feedback(models: Sequence[str]) -> dict[str, Any]:
    label = {
        "type": "object",
        "required": ["request_id", "label"],
        "properties": {
            "request_id": {"type": "string", "minLength": 1, "maxLength": 128},
            "label": {"type": ["string", "null"], "description": "a class, null: none of them"},
            "number": {"type": "integer", "minimum": 0, "description": "of the request's pictures"},
        },
        "additionalProperties": False,
    }
    labels = {"type": "array", "items": label, "minItems": 1, "maxItems": MOST_LABELS}
    schema = {"oneOf": [label, _object("feedback", of=labels)]}
    taken = {_JSON: {"schema": _object("counted", "repeated", "kept")}}
    kept = {"description": "Kept: answers that this server doesn't remember", "content": taken}
    return {
        "operationId": "feedback",
        "summary": "Tell true labels of pictures that were answered",
        "parameters": [_model(models)],
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema}}},
        "responses": _responses(taken) | {"202": kept},
    }


def _index() -> dict[str, Any]:
    operation = _look(
        "index", "All models with their states", {"type": "array", "items": _object("name")}
    )
    operation["requestBody"] = {
        "content": {
            _JSON: {
                "schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
            }
        }
    }
    return operation


def _metrics() -> dict[str, Any]:
    operation = _look("metrics", "Prometheus's metrics", _object())
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return operation


def _responses(ok: dict[str, Any]) -> dict[str, Any]:
    errors = {status: {"$ref": f"#/components/responses/{status}"} for status in _ERRORS}
    return {"200": {"description": "The answer", "content": ok}, **errors}


def _errors() -> dict[str, Any]:
    retry = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return {
        status: {
            "description": words,
            "content": {_JSON: {"schema": _ref("Error")}},
            **({"headers": retry} if status in ("429", "503") else {}),
        }
        for status, words in _ERRORS.items()
    }


def _model(models: Sequence[str]) -> dict[str, Any]:
    schema = {"type": "string", "enum": list(models)} if models else {"type": "string"}
    return {"name": "model", "in": "path", "required": True, "schema": schema}


def _versioned(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the operation on one version of a model."""
    others = [each for each in operation.get("parameters", ()) if each["in"] != "path"]
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    return operation | {"parameters": [_model(()), version, *others]}


def _object(*required: str, of: dict[str, Any] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if required:
        schema["required"] = list(required)
    if of is not None:
        schema["properties"] = dict.fromkeys(required, of)
    return schema


def _flag(name: str) -> dict[str, Any]:
    return _object(name, of={"type": "boolean"})


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(settings: ServeSettings) -> dict[str, Any]:
    text = {"type": "string"}
    number = {"type": "number"}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1}
    parameters = {"type": "object"}
    picture = {"type": "string", "contentEncoding": "base64"}
    tensor = {"name": text, "datatype": text, "shape": {"type": "array"}}
    return {
        "Error": {**_object("error", of=text), "additionalProperties": False},
        "Model": {
            "type": "object",
            "required": ["name", "versions", "platform", "inputs", "outputs"],
            "properties": {
                "name": text,
                "versions": {"type": "array", "items": text},
                "platform": text,
                "inputs": {"type": "array", "items": {"type": "object", "properties": tensor}},
                "outputs": {"type": "array", "items": {"type": "object", "properties": tensor}},
                "properties": parameters,
            },
        },
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": text,
                "parameters": parameters,
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "datatype", "shape", "data"],
                        "properties": {
                            "name": {"enum": [PIXELS, ENCODED]},
                            "datatype": {"enum": ["UINT8", "BYTES"]},
                            "shape": shape,
                            "parameters": parameters,
                            "data": {"type": "array", "minItems": 1},
                        },
                    },
                },
                "outputs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"enum": list(OUTPUTS)}, "parameters": parameters},
                    },
                },
            },
        },
        "InferResponse": {
            "type": "object",
            "required": ["model_name", "outputs"],
            "properties": {
                "model_name": text,
                "model_version": text,
                "id": text,
                "outputs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "datatype", "shape"],
                        "properties": tensor,
                    },
                },
            },
        },
        "Prediction": {
            "type": "object",
            "required": ["label", "score", "abstain", "probabilities"],
            "properties": {
                "model": text,
                "release": text,
                "label": text,
                "score": number,
                "abstain": {"type": "boolean"},
                "probabilities": {"type": "object", "additionalProperties": number},
            },
        },
        "PredictRequest": {
            "type": "object",
            "required": ["instances"],
            "properties": {
                "instances": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": settings.pictures_per_request,
                    "items": {"anyOf": [picture, _object("b64", of=picture), {"type": "array"}]},
                }
            },
        },
    }
