"""The server's log: one JSON object a line, for people's eyes and for machines."""

import logging
import sys
import uuid
from datetime import UTC, datetime
from typing import TextIO

import orjson

from linnet.inference.models import ServedModel
from linnet.inference.settings import ServeSettings

access_logger = logging.getLogger("linnet.access")


class JsonFormatter(logging.Formatter):
    """Formats records as JSON objects; what is in `record.fields` joins them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["error"] = self.formatException(record.exc_info)
        return orjson.dumps(values, default=str).decode()


class Access:
    """Writes a line per request, as the settings want it."""

    def __init__(self, settings: ServeSettings) -> None:
        self._all = settings.access_log == "all"
        self._errors = settings.access_log != "none"

    def note(
        self,
        *,
        id: str,
        protocol: str,
        call: str,
        model: ServedModel | None,
        code: int | str,
        failed: bool,
        seconds: float,
        trace: str | None = None,
    ) -> None:
        """Write the line of a finished request."""
        if not (self._all or (failed and self._errors)):
            return
        fields = {
            "request_id": id or uuid.uuid4().hex,
            "protocol": protocol,
            "code": code,
            "milliseconds": round(seconds * 1000, 2),
        }
        if model is not None:
            fields |= {"model": model.name, "release": model.release}
        if trace is not None:
            fields["trace_id"] = trace
        access_logger.info(call[:200], extra={"fields": fields})


def log_json(stream: TextIO = sys.stdout, level: int = logging.INFO) -> None:
    """Send the log of this process to a stream as JSON lines; for entry points."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("linnet").setLevel(level)
