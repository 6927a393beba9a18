"""The server's REST side in OpenAPI's words."""

from typing import Any

from linnet.inference.settings import ServeSettings


def description(models: list[str], settings: ServeSettings) -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    return {"openapi": "3.1.0", "info": {"title": "linnet", "version": "2"}, "paths": {}}
