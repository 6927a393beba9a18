"""A small stand-in of Kubeflow Pipelines' API server, with the shapes that 2.17's answers have.

A run is a list of frames, one for each time that it is asked for; the last one stays.
"""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

RUN = "0b9c7f9e-6b4a-4d0e-9f6e-1c2d3e4f5a6b"
WORKFLOW = "train-and-release-x7k2p"
NEVER = "0001-01-01T00:00:00Z"


def node_hash(name: str) -> int:
    """The hash that Argo gives to a node's name."""
    value = 2166136261
    for byte in name.encode():
        value = ((value ^ byte) * 16777619) % 2**32
    return value


def identity(name: str) -> str:
    return f"{WORKFLOW}-{node_hash(name)}"


def pod(step: str, *, inside: str = "root.exit-handler-1", attempt: str = "") -> str:
    name = f"{WORKFLOW}.{inside}.{step}.executor{attempt}"
    return f"{WORKFLOW}-{'retry-' if attempt else ''}system-container-impl-{node_hash(name)}"


def task(name: str, state: str, seconds: int = 40, children: tuple[str, ...] = ()) -> Any:
    ended = state not in ("RUNNING", "PENDING")
    return {
        "run_id": RUN,
        "task_id": f"id-{name}",
        "display_name": name,
        "create_time": "2026-11-21T06:00:00Z",
        "start_time": "2026-11-21T06:00:00Z",
        "end_time": f"2026-11-21T06:00:{seconds:02}Z" if ended else NEVER,
        "state": state,
        "child_tasks": [{"pod_name": child} for child in children],
    }


def step(
    name: str,
    state: str,
    seconds: int = 40,
    *,
    inside: str = "root.exit-handler-1",
    attempts: int = 0,
) -> list[Any]:
    """The tasks that the API has of a step: of what it lies in, its driver's, its own, its pods'.

    Of each task it gives the last part of its name, and of its children the hash of the whole.
    """
    parts = [WORKFLOW, *inside.split("."), name, "executor"]
    whole = [".".join(parts[: end + 1]) for end in range(len(parts))]
    above = [
        task(part, "RUNNING", seconds, (identity(below),))
        for part, below in zip(parts[:-3], whole[1:], strict=False)
    ]
    tries = [f"({number})" for number in range(attempts)]
    return [
        *above,
        task(parts[-3], "RUNNING", seconds, (identity(whole[-2]),)),
        task(f"{name}-driver", "SUCCEEDED", 5),
        task(name, state, seconds, (identity(whole[-1]),)),
        task("executor", state, seconds, tuple(identity(whole[-1] + one) for one in tries)),
        *(task(f"executor{one}", state, seconds) for one in tries),
    ]


def frame(state: str, *steps: list[Any], error: str | None = None) -> dict[str, Any]:
    tasks = [one for several in steps for one in several]
    run: dict[str, Any] = {"run_id": RUN, "state": state, "run_details": {"task_details": tasks}}
    return run | ({"error": {"code": 2, "message": error}} if error else {})


def log(step: str, *lines: str, raised: str | None = None) -> str:
    """What a pod prints: the launcher, kfp's executor, the step itself, and its traceback."""
    said = [f"[KFP Executor 2026-11-21 06:00:01,000 INFO]: {line}" for line in lines]
    head = [
        "I1121 06:00:00.000000       1 launcher_v2.go:192] publish success.",
        f"[KFP Executor 2026-11-21 06:00:00,500 INFO]: Looking for component `{step}` in --x",
        "[KFP Executor 2026-11-21 06:00:00,600 INFO]: Got executor_input:",
        "{",
        '    "inputs": {}',
        "}",
    ]
    trace = (
        ["Traceback (most recent call last):", '  File "x.py", line 1', raised] if raised else []
    )
    tail = [
        "F1121 06:00:02.000000      20 main.go:59] failed to execute component: exit status 1",
        'time=2026-11-21T06:00:02.494Z level=INFO msg="sub-process exited" argo=true',
        "Error: exit status 1",
    ]
    return "\n".join([*head, *said, *trace, *(tail if raised else ()), ""])


@dataclass
class StandIn:
    """What the server knows, and what it was sent."""

    frames: list[dict[str, Any]] = field(default_factory=lambda: [frame("SUCCEEDED")])
    logs: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    multi_user: bool = False
    answer: tuple[int, str, str] | None = None
    failures: int = 0
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def respond(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        parts = urlsplit(path)
        if body is not None:
            self.sent.append((parts.path, body))
        match method, parts.path.removeprefix("/apis/v2beta1").split("/")[1:]:
            case "GET", ["healthz"]:
                return 200, {"multi_user": self.multi_user}
            case "GET", ["experiments"]:
                wanted = json.loads(parse_qs(parts.query)["filter"][0])["predicates"][0]
                found = self.experiments.get(wanted["stringValue"])
                return 200, {"experiments": [{"experiment_id": found}]} if found else {}
            case "POST", ["experiments"]:
                return 200, {"experiment_id": "experiment-1"}
            case "POST", ["runs"]:
                return 200, {"run_id": RUN, "state": "PENDING"}
            case "POST", ["recurringruns"]:
                return 200, {"recurring_run_id": "recurring-1"}
            case "GET", ["runs", run] if run == RUN:
                if self.failures:
                    self.failures -= 1
                    return 500, {"code": 13, "message": "the database is away"}
                return 200, self.frames.pop(0) if len(self.frames) > 1 else self.frames[0]
            case "GET", ["apis", "v1alpha1", "runs", _, "nodes", name, "log"]:
                # The status is out before the server looks for the pod.
                missing = {"error_message": f"pods {name!r} not found", "error_details": "…"}
                return 200, self.logs.get(name, missing)
        return 404, {"code": 5, "message": f"Not Found: {method} {path}"}


class _Handler(BaseHTTPRequestHandler):
    state: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self._answer(json.loads(self.rfile.read(length)))

    def _answer(self, body: dict[str, Any] | None) -> None:
        self.state.headers.append(dict(self.headers))
        if self.state.answer is not None:
            status, kind, text = self.state.answer
        else:
            status, content = self.state.respond(self.command, self.path, body)
            kind = "application/json"
            text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        if status == 302:
            self.send_header("Location", "/dex/auth")
        self.end_headers()
        self.wfile.write(text.encode())


class Serving:
    """Run the stand-in on a free port for the length of a `with`."""

    def __init__(self) -> None:
        self.state = StandIn()
        handler = type("Handler", (_Handler,), {"state": self.state})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.state.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self.state

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
