"""How fast the server is: against a bare ONNX Runtime loop, and against other servers.

    python -m benchmarks.serving --prepare     # install the others, export the graphs: once
    python -m benchmarks.serving               # measure, some 25 minutes on two CPUs
    python -m benchmarks.serving --quick       # a look, some 5 minutes

Everything runs on 127.0.0.1, in turn, in rounds; a slice of the bare loop lies before and after
every measurement, and ratios are of neighbours. Servers that aren't measured are stopped (SIGSTOP).
Peers get an environment each below build/bench; one that can't be installed is reported as such.
A peer that dies meanwhile is left out from then on.
All numbers go to build/bench/serving.json as they come, and as tables to build/bench/serving.md.
"""

import argparse
import base64
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import graphs, load
from benchmarks.load import Load, Target
from linnet.data.preprocessing import prepare
from linnet.machine import available_cpus
from tests.serving.photographs import photographs
from tests.serving.tiny_release import write_release

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "bench"
INFER = "/inference.GRPCInferenceService/ModelInfer"
OCTETS = ("Content-Type", "application/octet-stream")
AS_JSON = ("Content-Type", "application/json")
START_S = 180.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CPUS = available_cpus()
# Of the machine; a measurement with more is used only where there is no quieter one.
QUIET = 0.1


@dataclass(frozen=True)
class Peer:
    """Another framework's server: what to install and how to start it."""

    packages: tuple[str, ...]
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


_FASTAPI = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0")
PEERS = {
    "kserve": Peer(("kserve==0.21.0",), ("-m", "benchmarks.peers.kserve_app")),
    "mlserver": Peer(
        # Its workers rely on a default event loop, which uvloop 0.22 no longer makes.
        ("mlserver==1.7.1", "uvloop<0.22"),
        ("-m", "benchmarks.peers.mlserver_app"),
    ),
    "litserve": Peer(
        ("litserve==0.2.19", "python-multipart"), ("-m", "benchmarks.peers.litserve_app")
    ),
    "bentoml": Peer(
        ("bentoml==1.4.39",),
        ("-m", "bentoml", "serve", "benchmarks.peers.bentoml_app:Flowers", "--host", "127.0.0.1"),
    ),
    "fastapi threads": Peer(_FASTAPI, ("-m", "benchmarks.peers.fastapi_app")),
    "fastapi processes": Peer(
        _FASTAPI, ("-m", "benchmarks.peers.fastapi_app"), {"WORKERS": str(os.cpu_count())}
    ),
}
RUNTIME = ("onnxruntime==1.31.1", "pillow>=11.3", "numpy>=2,<3")

# What a format's requests carry, and how near to the limit the server should come.
FORMATS = {
    "grpc uint8": ("uint8", 0.90),
    "rest binary uint8": ("uint8", 0.90),
    "grpc jpeg": ("encoded", 0.90),
    "rest binary jpeg": ("encoded", 0.90),
    "json base64 jpeg": ("encoded", 0.80),
}


@dataclass
class Server:
    """A server process and its children, stopped while nobody measures it."""

    name: str
    process: subprocess.Popen[bytes]
    rest_port: int
    grpc_port: int
    targets: dict[str, Target]

    def wake(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def sleep(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def cpu_s(self) -> float:
        """User and system time of the process and all below it."""
        return sum(_cpu_s(pid) for pid in _family(self.process.pid))

    def rss_mib(self) -> float:
        return sum(_rss_mib(pid) for pid in _family(self.process.pid))

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.wake()
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _family(pid: int) -> list[int]:
    found = [pid]
    for at in found:
        with suppress(OSError):
            for task in Path(f"/proc/{at}/task").iterdir():
                found += [int(one) for one in (task / "children").read_text().split()]
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _rss_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
    except OSError:
        return 0.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def v2_message(datatype: str, shape: Sequence[int], raw: bytes) -> bytes:
    from linnet.inference.protocol import open_inference_pb2 as v2

    return bytes(
        v2.ModelInferRequest(
            model_name="flowers",
            inputs=[{"name": "pictures", "datatype": datatype, "shape": shape}],
            outputs=[{"name": "probabilities"}],
            raw_input_contents=[raw],
        ).SerializeToString()
    )


def v2_octets(port: int, datatype: str, shape: Sequence[int], raw: bytes) -> Target:
    tensor = {"name": "pictures", "datatype": datatype, "shape": list(shape)}
    header = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = (OCTETS, ("Inference-Header-Content-Length", str(len(header))))
    return Target("http", port, header + raw, "/v2/models/flowers/infer", headers)


@dataclass(frozen=True)
class Picture:
    """One photograph in both forms."""

    encoded: bytes
    pixels: bytes

    @property
    def framed(self) -> bytes:
        return len(self.encoded).to_bytes(4, "little") + self.encoded

    @property
    def base64(self) -> str:
        return base64.b64encode(self.encoded).decode()


def picture() -> Picture:
    encoded = photographs()["china.jpg"]
    return Picture(encoded, prepare(encoded, graphs.SPEC).tobytes())


SHAPE = (1, graphs.SPEC.size_px, graphs.SPEC.size_px, 3)


def our_targets(rest: int, grpc: int, shown: Picture) -> dict[str, Target]:
    in_json = {
        "inputs": [{"name": "pictures", "datatype": "BYTES", "shape": [1], "data": [shown.base64]}],
        "outputs": [{"name": "label"}, {"name": "score"}],
    }
    path = "/v2/models/flowers/infer"
    return {
        "grpc uint8": Target("grpc", grpc, v2_message("UINT8", SHAPE, shown.pixels), INFER),
        "rest binary uint8": v2_octets(rest, "UINT8", SHAPE, shown.pixels),
        "grpc jpeg": Target("grpc", grpc, v2_message("BYTES", (1,), shown.framed), INFER),
        "rest binary jpeg": v2_octets(rest, "BYTES", (1,), shown.framed),
        "json base64 jpeg": Target("http", rest, json.dumps(in_json).encode(), path, (AS_JSON,)),
    }


def peer_targets(name: str, rest: int, grpc: int, shown: Picture) -> dict[str, Target]:
    """Return the requests of a peer, by the format of ours that they are compared with."""
    ours = our_targets(rest, grpc, shown)
    if name == "kserve":
        instances = json.dumps({"instances": [{"b64": shown.base64}]}).encode()
        v1 = Target("http", rest, instances, "/v1/models/flowers:predict", (AS_JSON,))
        wanted = ("grpc uint8", "rest binary uint8", "grpc jpeg")
        return {**{one: ours[one] for one in wanted}, "json base64 jpeg": v1}
    if name == "mlserver":
        return {one: ours[one] for one in ("grpc uint8", "grpc jpeg")}
    if name == "litserve":
        return {
            "rest binary uint8": _form(rest, shown.pixels),
            "rest binary jpeg": _form(rest, shown.encoded),
        }
    plain = {
        "rest binary uint8": Target("http", rest, shown.pixels, "/uint8", (OCTETS,)),
        "rest binary jpeg": Target("http", rest, shown.encoded, "/encoded", (OCTETS,)),
    }
    if name.startswith("fastapi"):
        body = json.dumps({"picture": shown.base64}).encode()
        plain["json base64 jpeg"] = Target("http", rest, body, "/base64", (AS_JSON,))
    return plain


def _form(port: int, content: bytes) -> Target:
    """A multipart form with one file."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
    body = head + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--x--\r\n"
    return Target(
        "http", port, body, "/predict", (("Content-Type", "multipart/form-data; boundary=x"),)
    )


@contextmanager
def started(
    name: str,
    command: Callable[[int, int], Sequence[str]],
    environment: dict[str, str],
    targets: Callable[[int, int], dict[str, Target]],
) -> Iterator[Server]:
    """Start a server, wait for right answers in every format, and put it to sleep."""
    rest, grpc = free_port(), free_port()
    log = PLACE / f"{name.replace(' ', '-')}.log"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    ports = {"REST_PORT": str(rest), "GRPC_PORT": str(grpc), "METRICS_PORT": str(free_port())}
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command(rest, grpc)),
            env={**os.environ, "PYTHONPATH": paths, **ports, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=PLACE,
        )
    server = Server(name, process, rest, grpc, targets(rest, grpc))
    try:
        _wait(server, log)
        server.sleep()
        yield server
    finally:
        server.close()


def _wait(server: Server, log: Path) -> None:
    until = time.monotonic() + START_S
    waiting = dict(server.targets)
    said, patience = "", 0.3
    while waiting and time.monotonic() < until and server.process.poll() is None:
        time.sleep(0.3)
        for form, target in list(waiting.items()):
            with suppress(OSError):
                seen = load.closed(target, clients=1, seconds=patience)
                said = f"{form}: {seen.refused} refused, {seen.lost} lost"
                if seen.answered:
                    del waiting[form]
                else:
                    patience = min(2 * patience, 5.0)
    if waiting:
        tail = log.read_text(errors="replace")[-600:]
        raise RuntimeError(f"{server.name} does not answer {', '.join(waiting)} ({said})\n{tail}")


class Limit:
    """The bare loop in a process of its own, idle between jobs."""

    def __init__(self, model: Path, shown: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.limit", str(model), str(shown)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._answer()
        self.kinds = {source: self._faster(source) for source in ("uint8", "encoded")}

    def _faster(self, source: str) -> str:
        rates: dict[str, list[float]] = defaultdict(list)
        for _ in range(7):
            for kind in ("wide", "narrow"):
                rates[kind].append(self.run(kind, source, 0.5)["rate"])
        return max(rates, key=lambda kind: statistics.median(rates[kind]))

    def slice(self, source: str, seconds: float) -> dict[str, float]:
        """Return the rate, pictures/s, and the CPU of a picture, seconds."""
        return self.run(self.kinds[source], source, seconds)

    def run(self, kind: str, source: str, seconds: float) -> dict[str, float]:
        job = {"kind": kind, "input": source, "seconds": seconds}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


@dataclass(frozen=True)
class Seen:
    """One measurement: rates in pictures/s, times in milliseconds, CPU per request.

    `ratio` is of rates. `cpu_ratio` is the limit's CPU for a picture over the server's and client's
    for a request: what the ratio is when all cores are busy with nothing else. `others` is the
    share of the machine that other processes took meanwhile.
    """

    rate: float
    ratio: float
    cpu_ratio: float
    others: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float
    client_cpu_ms: float
    refused: int
    lost: int


Results = dict[tuple[str, str, int], list[Seen]]


@contextmanager
def surviving(server: Server, failed: dict[str, str]) -> Iterator[None]:
    """Note that a peer has died, and go on without it."""
    try:
        yield
    except OSError as error:
        if server.name == "linnet":
            raise
        failed[server.name] = f"died while it was measured ({error})"
        print(f"{server.name} {failed[server.name]}", flush=True)


def throughput(
    limit: Limit,
    servers: list[Server],
    options: argparse.Namespace,
    results: Results,
    *,
    clients: Sequence[int],
    failed: dict[str, str],
) -> None:
    """One round: every server, format and number of clients, each between two slices of limit."""
    for form in options.formats:
        source = FORMATS[form][0]
        before = limit.slice(source, options.slice_s)
        for count in clients:
            for server in _with(form, servers, failed):
                with surviving(server, failed):
                    found, cpu, others = _loaded(server, form, count, options.seconds)
                    after = limit.slice(source, options.slice_s)
                    seen = _seen(found, cpu, others, before, after)
                    results[server.name, form, count].append(seen)
                    before = after


def _with(form: str, servers: list[Server], failed: dict[str, str]) -> list[Server]:
    """Return the servers that answer a format and have not died."""
    return [one for one in servers if form in one.targets and one.name not in failed]


def _loaded(server: Server, form: str, clients: int, seconds: float) -> tuple[Load, float, float]:
    """Return what became of a load, its CPU seconds in the server, and the share of others."""
    server.wake()
    load.closed(server.targets[form], clients=clients, seconds=0.3)
    cpu, busy, began = server.cpu_s(), busy_s(), time.perf_counter()
    found = load.closed(server.targets[form], clients=clients, seconds=seconds)
    cpu, took = server.cpu_s() - cpu, time.perf_counter() - began
    others = (busy_s() - busy - cpu - found.client_cpu_s) / (took * CPUS)
    server.sleep()
    return found, cpu, others


def busy_s() -> float:
    """CPU seconds that the whole machine has spent so far."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    idle = int(fields[3]) + int(fields[4])
    return (sum(int(one) for one in fields[:8]) - idle) * TICK_S


def _seen(
    found: Load, cpu: float, others: float, before: dict[str, float], after: dict[str, float]
) -> Seen:
    requests = max(1, found.answered + found.refused + found.late)
    limit, limit_cpu = ((before[key] + after[key]) / 2 for key in ("rate", "cpu_s"))
    return Seen(
        rate=found.rate,
        ratio=found.rate / limit,
        cpu_ratio=limit_cpu * requests / max(TICK_S, cpu + found.client_cpu_s),
        others=others,
        p50_ms=found.percentile(50) * 1e3,
        p99_ms=found.percentile(99) * 1e3,
        server_cpu_ms=cpu / requests * 1e3,
        client_cpu_ms=found.client_cpu_s / requests * 1e3,
        refused=found.refused,
        lost=found.lost,
    )


def alone(limit: Limit, ours: Server, options: argparse.Namespace) -> dict[str, list[float]]:
    """Latency of one client beyond the model's own, in milliseconds, by format."""
    beyond: dict[str, list[float]] = defaultdict(list)
    ours.wake()
    for _ in range(options.rounds * 2):
        for form in ("grpc uint8", "rest binary uint8"):
            before = limit.run("alone", "uint8", options.slice_s)["latency_s"]
            found = load.closed(ours.targets[form], clients=1, seconds=options.seconds)
            after = limit.run("alone", "uint8", options.slice_s)["latency_s"]
            beyond[form].append((found.percentile(50) - (before + after) / 2) * 1e3)
    ours.sleep()
    return beyond


def equal_load(
    servers: list[Server],
    results: Results,
    options: argparse.Namespace,
    failed: dict[str, str],
) -> Any:
    """p99 in milliseconds at 0.6 of what the best peer reaches, by format and server."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for form in options.formats:
        rates = [
            statistics.median(seen.rate for seen in results[server.name, form, 8])
            for server in servers
            if server.name != "linnet" and (server.name, form, 8) in results
        ]
        if not rates:
            continue
        for _ in range(options.rounds + 1):
            for server in _with(form, servers, failed):
                with surviving(server, failed):
                    server.wake()
                    seen = load.open_loop(
                        server.targets[form],
                        rate=0.6 * max(rates),
                        # The slowest hundredth takes some hundreds to be known.
                        seconds=2 * options.seconds,
                        connections=32,
                    )
                    server.sleep()
                    found[form][server.name].append(seen.percentile(99) * 1e3)
    return found


def overload(ours: Server, options: argparse.Namespace) -> dict[str, float]:
    """Three times what the server can do, for a while."""
    form = "grpc uint8"
    target = ours.targets[form]
    ours.wake()
    peaks = [load.closed(target, clients=32, seconds=options.seconds) for _ in range(3)]
    peak = statistics.median(one.rate for one in peaks)
    memory, stop = [ours.rss_mib()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            memory.append(ours.rss_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu = ours.cpu_s()
    found = load.open_loop(target, rate=3 * peak, seconds=options.overload_s, connections=400)
    cpu = ours.cpu_s() - cpu
    stop.set()
    watcher.join()
    again = load.closed(target, clients=32, seconds=options.seconds)
    ours.sleep()
    half = len(memory) // 2
    return {
        "peak_rate": peak,
        "offered_rate": 3 * peak,
        "answered_of_peak": found.rate / peak,
        "refused": found.refused,
        "not_sent": found.lost,
        "p99_ms": found.percentile(99) * 1e3,
        "p99_at_32_clients_ms": statistics.median(one.percentile(99) for one in peaks) * 1e3,
        "server_cpu_ms": cpu / max(1, found.answered + found.refused) * 1e3,
        "client_cpu_ms": found.client_cpu_s / max(1, found.answered + found.refused) * 1e3,
        "rss_before_mib": memory[0],
        "rss_middle_mib": max(memory[: half + 1]),
        "rss_end_mib": max(memory[half:]),
        "afterwards_of_peak": again.rate / peak,
    }


def quantized(ours: Server, small: Server, options: argparse.Namespace) -> dict[str, list[float]]:
    """Throughput of an int8 release over the fp32 one's, 8 clients, by format."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for form in ("grpc uint8", "rest binary uint8"):
            rates = []
            for server in (ours, small):
                server.wake()
                found = load.closed(server.targets[form], clients=8, seconds=options.seconds)
                server.sleep()
                rates.append(found.rate)
            ratios[form].append(rates[1] / rates[0])
    return ratios


def our_server(stack: ExitStack, name: str, model: Path, shown: Picture) -> Server:
    """Serve a release made of a graph, with access logging off as it is for all."""
    root = PLACE / "releases" / model.stem
    shutil.rmtree(root, ignore_errors=True)
    classes = [f"class {at}" for at in range(graphs.CLASSES)]
    samples = {"china.jpg": shown.encoded}
    release = write_release(
        root, samples, encoded=model.read_bytes(), classes=classes, spec=graphs.SPEC
    )
    linnet = Path(sys.executable).with_name("linnet")

    def command(rest: int, grpc: int) -> list[str]:
        ports = ["--rest-port", str(rest), "--grpc-port", str(grpc)]
        return [str(linnet), "serve", str(release), *ports, "--set", "access_log=none"]

    targets = lambda rest, grpc: our_targets(rest, grpc, shown)  # noqa: E731
    return stack.enter_context(started(name, command, {}, targets))


def peer_server(stack: ExitStack, name: str, model: Path, shown: Picture) -> Server:
    peer = PEERS[name]
    python = installed(name.split()[0], peer.packages)

    def command(rest: int, grpc: int) -> list[str]:
        more = ["--port", str(rest)] if name == "bentoml" else []
        return [str(python), *peer.command, *more]

    environment = {"MODEL": str(model), **peer.environment}
    targets = lambda rest, grpc: peer_targets(name, rest, grpc, shown)  # noqa: E731
    try:
        return stack.enter_context(started(name, command, environment, targets))
    except RuntimeError:
        # Its ports may have been taken meanwhile.
        return stack.enter_context(started(name, command, environment, targets))


def installed(name: str, packages: tuple[str, ...]) -> Path:
    """Make the peer's environment, once, and return its Python."""
    folder = PLACE / "environments" / name
    python, stamp = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join((*packages, *RUNTIME))
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", "3.11", folder], check=True)
        command = ["uv", "pip", "install", "--quiet", "--python", python, *packages, *RUNTIME]
        subprocess.run(command, check=True)
        stamp.write_text(wanted)
    return python


def exported(network: str, weights: Path | None) -> tuple[Path, Path]:
    """Return the graph of a network in fp32 and in int8, made once."""
    whole, small = PLACE / f"{network}.onnx", PLACE / f"{network}-int8.onnx"
    if weights is not None or not whole.exists():
        graphs.save(graphs.fp32(network, weights), whole)
        small.unlink(missing_ok=True)
    if not small.exists():
        graphs.save(graphs.int8(whole.read_bytes(), list(photographs().values())), small)
    return whole, small


def prepare_all(options: argparse.Namespace) -> None:
    """Install the peers and export the graphs, so that a later run only measures."""
    for network in options.networks:
        exported(network, options.weights)
    for name in options.peers:
        print(name, installed(name.split()[0], PEERS[name].packages), flush=True)


def run(
    network: str, options: argparse.Namespace, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure one network; return everything for the JSON file, after printing it.

    `keep` is given what there is as it comes.
    """
    began = time.monotonic()
    shown = picture()
    model, small = exported(network, options.weights)
    photo = PLACE / "picture.jpg"
    photo.write_bytes(shown.encoded)
    limit = Limit(model, photo)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        stack.callback(limit.close)
        ours = our_server(stack, "linnet", model, shown)
        servers = [ours]
        for name in options.peers:
            try:
                servers.append(peer_server(stack, name, model, shown))
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                failed[name] = str(error)
                print(f"{name} can't be measured: {error}", flush=True)
        results: Results = defaultdict(list)
        for number in range(options.rounds):
            print(f"{network}: round {number + 1} of {options.rounds}", flush=True)
            # One client at a time says little about throughput: once is enough.
            clients = [one for one in options.clients if one > 1 or not number]
            throughput(limit, servers, options, results, clients=clients, failed=failed)
            keep({"network": network, "failed": failed, "throughput": _rows(results)})
        memory = {server.name: server.rss_mib() for server in servers}
        show(network, limit, results)
        beyond = alone(limit, ours, options)
        level = equal_load(servers, results, options, failed)
        tiny = our_server(stack, "linnet int8", small, shown)
        ratios = quantized(ours, tiny, options)
        flood = overload(ours, options)
    claims = targets(results, beyond, level, ratios, flood, options)
    print("\ntargets")
    for claim in claims:
        print(f"  {claim.what:62} {claim.found:8.2f}  {claim.verdict} ({claim.wanted})")
    print("  overload: " + ", ".join(f"{name} {value:.5g}" for name, value in flood.items()))
    minutes = (time.monotonic() - began) / 60
    print(f"{network}: {minutes:.1f} minutes", flush=True)
    everything = {
        "network": network,
        "minutes": minutes,
        "memory_mib": memory,
        "claims": [asdict(claim) for claim in claims],
        "limit": limit.kinds,
        "failed": failed,
        "throughput": _rows(results),
        "alone_beyond_model_ms": beyond,
        "p99_at_equal_load_ms": level,
        "int8_over_fp32": ratios,
        "overload": flood,
    }
    keep(everything)
    return everything


def _rows(results: Results) -> list[dict[str, Any]]:
    return [
        {"server": key[0], "format": key[1], "clients": key[2], **asdict(seen)}
        for key, rounds in results.items()
        for seen in rounds
    ]


def median(rounds: Sequence[Seen], name: str) -> float:
    """Median of what was measured while the machine was ours, else of the quieter half."""
    ordered = sorted(rounds, key=lambda seen: seen.others)
    quiet = [seen for seen in ordered if seen.others <= QUIET]
    return statistics.median(
        getattr(seen, name) for seen in quiet or ordered[: -(-len(ordered) // 2)]
    )


def show(network: str, limit: Limit, results: Results) -> None:
    print(f"\n{network}; limit: {limit.kinds}; medians of rounds; CPU in ms a request")
    head = ("format", "clients", "server", "of limit", "by CPU", "others", "rate")
    times = ("p50 ms", "p99 ms", "CPU", "client")
    print("{:18} {:>7} {:18} {:>8} {:>7} {:>7} {:>7}".format(*head), end=" ")
    print("{:>8} {:>8} {:>7} {:>7}".format(*times))
    for key in in_order(results):
        name, form, clients = key
        ratios = [median(results[key], what) for what in ("ratio", "cpu_ratio", "others", "rate")]
        times = [
            median(results[key], what)
            for what in ("p50_ms", "p99_ms", "server_cpu_ms", "client_cpu_ms")
        ]
        print(f"{form:18} {clients:7} {name:18}", end=" ")
        print("{:8.2f} {:7.2f} {:7.2f} {:7.1f}".format(*ratios), end=" ")
        print("{:8.2f} {:8.2f} {:7.2f} {:7.2f}".format(*times))


@dataclass(frozen=True)
class Claim:
    """A target, what was found, and whether that meets it."""

    what: str
    found: float
    met: bool
    wanted: str

    @property
    def verdict(self) -> str:
        return "met" if self.met else "missed"


def targets(
    results: Results,
    beyond: dict[str, list[float]],
    level: Any,
    ratios: dict[str, list[float]],
    flood: dict[str, float],
    options: argparse.Namespace,
) -> list[Claim]:
    """Return each target of speed with what was found."""
    claims: list[Claim] = []

    def say(what: str, found: float, met: bool, wanted: str) -> None:
        claims.append(Claim(what, found, met, wanted))

    for form in options.formats:
        wanted = FORMATS[form][1]
        for clients in [one for one in options.clients if one >= 8]:
            rounds = results["linnet", form, clients]
            found = median(rounds, "ratio")
            also = f"≥ {wanted}; {median(rounds, 'cpu_ratio'):.2f} by CPU"
            say(f"{form}, {clients} clients: of the limit", found, found >= wanted, also)
    for form in options.formats:
        claims += _against_peers(form, results, options)
    for form, wanted in (("grpc uint8", 1.5), ("rest binary uint8", 2.5)):
        found = statistics.median(beyond[form])
        say(f"{form}, alone: ms beyond the model", found, found <= wanted, f"≤ {wanted}")
    for form, by_server in level.items():
        medians = {name: statistics.median(values) for name, values in by_server.items()}
        ours = medians.pop("linnet")
        best = min(medians, key=lambda name: medians[name])
        what = f"{form}: p99 ms at equal load ({best} {medians[best]:.1f})"
        say(what, ours, ours <= medians[best], f"≤ {medians[best]:.1f}")
    for form, values in ratios.items():
        found = statistics.median(values)
        say(f"{form}: int8 over fp32", found, found >= 1.8, "≥ 1.8")
    found = flood["answered_of_peak"]
    say("overload at 3×: of the peak", found, found >= 0.9, "≥ 0.9")
    found = flood["p99_ms"] / flood["p99_at_32_clients_ms"]
    say(
        "overload at 3×: p99 of the accepted, of that at 32 clients", found, found <= 1.25, "≤ 1.25"
    )
    found = flood["rss_end_mib"] - flood["rss_middle_mib"]
    say("overload at 3×: memory growth in the second half, MiB", found, found <= 20, "≤ 20")
    return claims


def _against_peers(form: str, results: Results, options: argparse.Namespace) -> Iterator[Claim]:
    wanted = {"grpc uint8": 1.2, "rest binary uint8": 1.0}.get(form, 1.4)
    for clients in [one for one in options.clients if one >= 8]:
        ours = results["linnet", form, clients]
        peers = _peers(results, form, clients)
        if not peers:
            continue
        best = max(peers, key=lambda name: median(peers[name], "ratio"))
        yield _over(f"{form}, {clients} clients: over {best}", ours, peers[best], wanted)
        if form == "rest binary uint8" and "kserve" in peers:
            yield _over(f"{form}, {clients} clients: over kserve", ours, peers["kserve"], 8)
        if "fastapi processes" in peers and best != "fastapi processes":
            what = f"{form}, {clients} clients: over fastapi processes"
            yield _over(what, ours, peers["fastapi processes"], 1.0)


def _over(what: str, ours: Sequence[Seen], theirs: Sequence[Seen], wanted: float) -> Claim:
    found, by_cpu = (
        median(ours, name) / max(1e-9, median(theirs, name)) for name in ("ratio", "cpu_ratio")
    )
    return Claim(what, found, found >= wanted, f"≥ {wanted}; {by_cpu:.2f} by CPU")


def markdown(found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return all of it as tables for the documentation."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "an unknown CPU",
    )
    lines = [
        f"{CPUS} CPUs ({model}), Python {sys.version.split()[0]}, {RUNTIME[0]}. Medians of "
        f"{options.rounds} rounds of {options.seconds} s; clients on the same CPUs.",
        "`of limit`: rate over the bare loop's beside it; `by CPU`: the loop's CPU for a picture "
        "over the server's and client's for a request, which doesn't mind who else computes.",
    ]
    for one in found:
        results = _results(one)
        lines += ["", f"## {one['network']}", "", *_summary_table(results)]
        lines += ["", *_targets_table(one["claims"]), "", *_throughput_table(results)]
        shown = ", ".join(f"{name} {mib:.0f}" for name, mib in one["memory_mib"].items())
        lines += ["", f"Resident memory after all rounds, MiB, all processes: {shown}."]
        flood = one["overload"]
        lines += [
            "",
            f"Overload for {options.overload_s:.0f} s: {flood['offered_rate']:.0f} requests/s "
            f"offered, peak {flood['peak_rate']:.0f}; {flood['answered_of_peak']:.2f} of the peak "
            f"answered, p99 {flood['p99_ms']:.0f} ms ({flood['p99_at_32_clients_ms']:.0f} at 32 "
            f"clients), {flood['refused']:.0f} refused; CPU ms a request offered: server "
            f"{flood['server_cpu_ms']:.2f}, client {flood['client_cpu_ms']:.2f}; "
            f"resident {flood['rss_before_mib']:.0f} → "
            f"{flood['rss_middle_mib']:.0f} → {flood['rss_end_mib']:.0f} MiB; afterwards "
            f"{flood['afterwards_of_peak']:.2f} of the peak.",
        ]
        lines += [f"{name} could not be measured: {why}" for name, why in one["failed"].items()]
    return "\n".join(lines) + "\n"


def _targets_table(claims: list[dict[str, Any]]) -> Iterator[str]:
    yield "| target | found | wanted | |"
    yield "| --- | ---: | --- | --- |"
    for claim in (Claim(**one) for one in claims):
        yield f"| {claim.what} | {claim.found:.2f} | {claim.wanted} | {claim.verdict} |"


def _results(one: dict[str, Any]) -> Results:
    results: Results = defaultdict(list)
    for row in one["throughput"]:
        seen = Seen(**{name: row[name] for name in Seen.__dataclass_fields__})
        results[row["server"], row["format"], row["clients"]].append(seen)
    return results


def _summary_table(results: Results) -> Iterator[str]:
    """A line for each format: numbers at 8 / 32 clients."""
    yield "| format | of the limit | by CPU | CPU ms a request | best other, of limit | over it |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for form in [one for one in FORMATS if any(one == key[1] for key in results)]:
        cells: list[list[str]] = [[] for _ in range(5)]
        for clients in sorted({key[2] for key in results if key[1] == form and key[2] >= 8}):
            rounds = results["linnet", form, clients]
            ours = median(rounds, "ratio")
            cells[0].append(f"{ours:.2f}")
            cells[1].append(f"{median(rounds, 'cpu_ratio'):.2f}")
            cells[2].append(f"{median(rounds, 'server_cpu_ms'):.2f}")
            if peers := _peers(results, form, clients):
                best = max(peers, key=lambda name: median(peers[name], "ratio"))
                theirs = median(peers[best], "ratio")
                cells[3].append(f"{best} {theirs:.2f}")
                cells[4].append(f"{ours / max(1e-9, theirs):.2f}")
        yield f"| {form} | " + " | ".join(" / ".join(cell) for cell in cells) + " |"


def _peers(results: Results, form: str, clients: int) -> dict[str, list[Seen]]:
    """Return what was measured of other servers, by their names."""
    return {
        name: rounds
        for (name, kind, count), rounds in results.items()
        if name != "linnet" and kind == form and count == clients
    }


def _throughput_table(results: Results) -> Iterator[str]:
    yield (
        "| format | clients | server | of limit | by CPU | requests/s | p50 ms | p99 ms | CPU ms a "
        "request | others' share |"
    )
    yield "| --- | ---: | --- | " + " | ".join(["---:"] * 7) + " |"
    for key in in_order(results):
        name, form, clients = key
        values = [median(results[key], what) for what in ("ratio", "cpu_ratio", "rate")]
        times = [median(results[key], what) for what in ("p50_ms", "p99_ms", "server_cpu_ms")]
        shown = (
            "{:.2f} | {:.2f} | {:.0f}".format(*values)
            + " | "
            + "{:.1f} | {:.1f} | {:.2f}".format(*times)
        )
        yield f"| {form} | {clients} | {name} | {shown} | {median(results[key], 'others'):.2f} |"


def in_order(results: Results) -> list[tuple[str, str, int]]:
    """Return the measurements by format and clients, the best first."""
    order = list(FORMATS)
    return sorted(
        results, key=lambda key: (order.index(key[1]), key[2], -median(results[key], "cpu_ratio"))
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mobilenetv2_100", "resnet18"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.2, help="of one measurement")
    parser.add_argument("--slice-s", type=float, default=0.6, help="of the limit in between")
    parser.add_argument("--overload-s", type=float, default=60.0)
    parser.add_argument("--weights", type=Path, help="safetensors of the first network")
    parser.add_argument("--quick", action="store_true", help="one network, two short rounds")
    parser.add_argument("--prepare", action="store_true", help="install and export, don't measure")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.rounds = options.networks[:1], 2
        options.seconds, options.slice_s, options.overload_s = 1.0, 0.5, 5.0
    return options


def main() -> None:
    options = arguments()
    PLACE.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        prepare_all(options)
        return
    found: list[dict[str, Any]] = []

    def keep(one: dict[str, Any]) -> None:
        (PLACE / "serving.json").write_text(json.dumps([*found, one], indent=1))

    for network in options.networks:
        found.append(run(network, options, keep))
        (PLACE / "serving.md").write_text(markdown(found, options))
    print(f"\nall numbers: {PLACE / 'serving.json'}; as tables: {PLACE / 'serving.md'}")


if __name__ == "__main__":
    main()
