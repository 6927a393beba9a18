"""Every setting as a table row for people, read off the settings' own JSON schema."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from linnet.settings import RunSettings


@dataclass(frozen=True)
class Row:
    """One setting: its dotted name, default, accepted values and meaning."""

    name: str
    default: str
    values: str
    meaning: str


def rows(section: str = "") -> list[Row]:
    """Return the settings whose dotted name is `section` or lies below it, in order."""
    schema = RunSettings.model_json_schema()
    every = _walk(schema, schema["$defs"], "", RunSettings().model_dump(mode="json"))
    return [row for row in every if f"{row.name}.".startswith(f"{section}." if section else "")]


def _walk(
    schema: dict[str, Any], definitions: dict[str, Any], prefix: str, defaults: Any
) -> Iterator[Row]:
    for name, field in schema["properties"].items():
        default = defaults.get(name) if isinstance(defaults, dict) else None
        below = _section(field, definitions)
        if below is not None:
            yield from _walk(below, definitions, f"{prefix}{name}.", default)
        else:
            shown = "" if default is None else json.dumps(default)
            yield Row(
                f"{prefix}{name}", shown, _values(field, definitions), field.get("description", "")
            )


def _section(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    for part in (field, *field.get("anyOf", ())):
        below = definitions.get(part.get("$ref", "").removeprefix("#/$defs/"), {})
        if "properties" in below:
            return dict(below)
    return None


def _values(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_values(part, definitions) for part in field["anyOf"])
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "const" in field:
        return str(field["const"])
    kind = str(field.get("type", "value"))
    if kind == "array":
        return f"list of {_values(field.get('items', {}), definitions)}"
    if kind == "object":
        below = field.get("additionalProperties", {})
        return "mapping to " + (_values(below, definitions) if below is not True else "anything")
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in field
    ]
    return " ".join([kind, *bounds])
