"""One server from start to end: listen, load, answer, drain, stop."""

import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from linnet.errors import LinnetError, ServeError
from linnet.inference.feedback import Feedback
from linnet.inference.grpc_api import GrpcServer
from linnet.inference.http import HttpLimits, HttpServer
from linnet.inference.logs import Access
from linnet.inference.memory import Memory
from linnet.inference.metrics import Metrics
from linnet.inference.models import Address, Kept, Models
from linnet.inference.prediction_log import PredictionLog
from linnet.inference.rest import Rest
from linnet.inference.settings import ServeSettings
from linnet.stores.connections import Connections

logger = logging.getLogger(__name__)

# Between threads that compute in C and one event loop, the default of 5 ms is a long wait.
_SWITCH_INTERVAL_S = 0.001
# For the last part of the prediction log, when all is answered.
_LOG_S = 10.0


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and the models that it serves."""

    host: str
    rest_port: int
    grpc_port: int
    models: tuple[str, ...]


def serve(
    releases: Sequence[str],
    settings: ServeSettings,
    *,
    connections: Connections | None = None,
    ready: Callable[[Listening], None] | None = None,
) -> None:
    """Serve releases until SIGTERM or SIGINT, then finish what was accepted.

    Each release is a folder, `s3://…` or `model@alias`, or `name=` and one of these to serve it
    under another name. `ready` is called once all of them answer.

    Raises:
        ServeError: a port can't be had.
        LinnetError: a release can't be served; says why.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    import uvloop

    with (
        tempfile.TemporaryDirectory(prefix="linnet-serve-") as scratch,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(releases, settings, connections, Path(scratch), ready))


async def _serve(
    releases: Sequence[str],
    settings: ServeSettings,
    connections: Connections | None,
    scratch: Path,
    ready: Callable[[Listening], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hurry = asyncio.Event()

    def stopping(at_once: bool) -> None:
        if stop.is_set() or at_once:
            hurry.set()
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stopping, False)
    loop.add_signal_handler(signal.SIGINT, stopping, True)
    metrics = Metrics()
    access = Access(settings)
    memory = Memory(settings)
    log = PredictionLog(settings.prediction_log, metrics, connections)
    kept = Kept(log, Feedback(settings, metrics, log))
    models = Models(settings, metrics, memory, kept, scratch=scratch, connections=connections)
    rest = Rest(models, metrics, settings, access, kept.feedback)
    http = HttpServer(rest.handle, rest.gate, _http_limits(settings), memory.bodies)
    metrics.connections.set_function(lambda: len(http.connections))
    rpc = GrpcServer(models, settings, access, metrics, memory.bodies)
    try:
        rest_port = await _listening(http.listen, settings.host, settings.rest_port)
        grpc_port = await _listening(rpc.listen, settings.host, settings.grpc_port)
        loading = asyncio.create_task(
            models.load_all([Address.parse(release) for release in releases])
        )
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            await loading
            listening = Listening(settings.host, rest_port, grpc_port, tuple(models.names()))
            logger.info(
                "ready: %s on REST %s:%d and gRPC %s:%d",
                ", ".join(listening.models),
                settings.host,
                rest_port,
                settings.host,
                grpc_port,
            )
            if ready is not None:
                ready(listening)
            await stopped
        else:
            loading.cancel()
    except LinnetError:
        await http.drain(0.0)
        await rpc.drain(0.0)
        await models.close()
        raise
    # From here on every answer ends its connection, so that none is kept when the port closes.
    http.draining = rest.draining = rpc.draining = True
    logger.info("stopping: no longer ready, finishing what was accepted")
    if settings.drain_wait_s and not hurry.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), settings.drain_wait_s)
    cut, _ = await asyncio.gather(
        http.drain(settings.drain_timeout_s), rpc.drain(settings.drain_timeout_s)
    )
    await models.close()
    await asyncio.to_thread(log.close, min(_LOG_S, settings.drain_timeout_s))
    if cut:
        logger.warning("%d connections did not finish in time and were cut off", cut)
    logger.info("stopped")


async def _listening(listen: Callable[[str, int], Awaitable[int]], host: str, port: int) -> int:
    try:
        return await listen(host, port)
    except OSError as error:
        raise ServeError(
            f"can't listen on {host}:{port} ({error}): choose another port or address, or stop "
            "what listens there"
        ) from error


def _http_limits(settings: ServeSettings) -> HttpLimits:
    return HttpLimits(
        max_body_bytes=settings.max_body_bytes,
        max_connections=settings.max_connections,
        head_timeout_s=settings.head_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
    )
