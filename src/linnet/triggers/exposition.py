"""What Prometheus reads of a watch: the champion's drift, and how the pipeline's last run went.

Both as the registry has them, whoever looked and wherever the run was.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from linnet.stores.outcome import ended_well
from linnet.stores.registry import RegisteredRelease


class Exposition:
    """The page /metrics of a watch."""

    def __init__(self, port: int) -> None:
        """Serve it on a port.

        Raises:
            ServeError: the port is taken.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        from linnet.errors import ServeError

        self._champion: RegisteredRelease | None = None
        self._model, self._notes = "", dict[str, str]()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise ServeError(
                f"port {port} for /metrics can't be had ({error.strerror}): give another "
                "metrics_port"
            ) from error

    def show(
        self, model: str, champion: RegisteredRelease | None, notes: Mapping[str, str]
    ) -> None:
        """Show what is recorded of a model's champion and, in `notes`, of the model as a whole."""
        self._model, self._champion, self._notes = model, champion, dict(notes)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as they are now, for prometheus_client."""
        yield from drift_metrics(self._champion)
        yield from run_metrics(self._model, self._notes)


def drift_metrics(champion: RegisteredRelease | None) -> Iterator[Any]:
    """Yield what the last look for drift of a release recorded; nothing where none did."""
    from prometheus_client.core import GaugeMetricFamily

    if champion is None or "drift_values" not in champion.tags:
        return
    values = json.loads(champion.tags["drift_values"])
    of = {"model": champion.model, "release": str(champion.tags.get("release", champion.number))}
    looked = datetime.fromisoformat(champion.tags["drift_looked"]).timestamp()
    for name, about, value in (
        ("linnet_drift", "1 when the last look found drift", values.pop("drift")),
        (
            "linnet_drift_chance",
            "How often a look without drift shows as much",
            values.pop("drift_chance"),
        ),
        ("linnet_drift_pictures", "Pictures of the last look", values.pop("drift_pictures")),
        (
            "linnet_drift_unreadable_pictures",
            "Pictures of the last look that could not be read",
            values.pop("drift_unreadable"),
        ),
        ("linnet_drift_looked_timestamp_seconds", "When the last look was", looked),
    ):
        yield _gauge(name, about, of, value)
    distances = GaugeMetricFamily(
        "linnet_drift_distance",
        "Distance of a number's distribution from the release's own, 0 to 1",
        labels=(*of, "feature"),
    )
    for name, value in values.items():
        distances.add_metric([*of.values(), name.removeprefix("drift_")], value)
    yield distances


def run_metrics(model: str, notes: Mapping[str, str]) -> Iterator[Any]:
    """Yield how the last run of a model's pipeline ended, and how much of its source it put aside.

    `notes` are the tags of the model in the registry.
    """
    of = {"model": model}
    if "last_run_state" in notes:
        failed = float(not ended_well(notes["last_run_state"]))
        ended = datetime.fromisoformat(notes["last_run_ended"]).timestamp()
        yield _gauge("linnet_run_failed", "1 when the pipeline's last run failed", of, failed)
        yield _gauge("linnet_run_ended_timestamp_seconds", "When the last run ended", of, ended)
    if "last_quarantined_share" in notes:
        about = "Share of its source's pictures that the last run put aside"
        share = float(notes["last_quarantined_share"])
        yield _gauge("linnet_quarantined_share", about, of, share)


def _gauge(name: str, about: str, of: Mapping[str, str], value: float) -> Any:
    """Return a gauge with one value."""
    from prometheus_client.core import GaugeMetricFamily

    gauge = GaugeMetricFamily(name, about, labels=tuple(of))
    gauge.add_metric(tuple(of.values()), value)
    return gauge
