"""V1 of the protocol, for clients that speak nothing newer: {"instances": […]}."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from linnet.errors import RequestError
from linnet.inference import v2
from linnet.inference.answers import Answers

_FORM = (
    'send {"instances": [{"b64": "a picture in base64"}, …]}, or pictures as nested lists '
    "[H, W, 3] of whole numbers from 0 to 255"
)


def parse_request(
    values: dict[str, Any], limits: v2.Limits
) -> tuple[v2.Pixels | None, list[v2.Buffer] | None]:
    """Return the pixels [N, H, W, 3] or the encoded pictures of a request.

    Raises:
        RequestError: with what to change.
    """
    instances = values.get("instances")
    if not isinstance(instances, list):
        raise RequestError(f"instances is missing or no list: {_FORM}")
    v2.check_pictures(len(instances), limits)
    if isinstance(instances[0], list):
        return _pixels(instances, limits), None
    return None, [_encoded(instance, number) for number, instance in enumerate(instances)]


def predictions(answers: Answers, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return one object per picture."""
    return [
        {
            "label": classes[best],
            "score": score,
            "abstain": abstain,
            "probabilities": dict(zip(classes, row, strict=True)),
        }
        for best, score, abstain, row in zip(
            answers.best.tolist(),
            answers.scores.tolist(),
            answers.abstain.tolist(),
            answers.probabilities.tolist(),
            strict=True,
        )
    ]


def _encoded(instance: Any, number: int) -> bytes:
    where = f"instance {number}"
    match instance:
        case str(text) | {"b64": text}:
            return v2.from_base64(text, where)
        case {"image": {"b64": text}} | {"image_bytes": {"b64": text}}:
            return v2.from_base64(text, where)
    raise RequestError(f"{where} is no picture: {_FORM}")


def _pixels(instances: list[Any], limits: v2.Limits) -> v2.Pixels:
    shape: list[int] = []
    level: Any = instances
    while isinstance(level, list) and len(shape) < 5:
        shape.append(len(level))
        level = level[0] if level else None
    tensor = v2.tensor_of(v2.PIXELS, "UINT8", shape)
    return np.ascontiguousarray(v2.pixels_from_lists(tensor, instances, limits))
