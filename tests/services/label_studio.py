"""Label Studio of its own: its requirements contradict ours, so it has a virtual environment.

`label-studio.txt` is what is installed: its first line, and what `uv pip freeze` showed with it.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).with_name("label-studio.txt")
USER = "anna@linnet.example"
# What is asked at its first start takes it minutes on a busy machine: it makes its database.
READY_WITHIN_S = 900.0


def running_label_studio(folder: Path, known: dict[str, Any], port: int) -> dict[str, Any]:
    """Return where Label Studio is, installed and started below `folder` unless it runs already."""
    if "address" in known and label_studio_answers(known["address"]):
        return known
    address = f"http://127.0.0.1:{port}"
    data = folder / "label-studio-data"
    try:
        program = _installed(folder / "label-studio")
        token = _token(data)
        server = _start(program, data, port, token)
        _wait(server, address)
    except (subprocess.SubprocessError, OSError) as error:
        words = f"Label Studio can't be installed or started: {error}"
        return {"unavailable": f"{words}, see {data}.log"}
    # The database is whole from here on, and is taken again at the next start.
    (data / "token.json").write_text(json.dumps(token), encoding="utf-8")
    return {"address": address, "user": USER, "token": token, "pid": server.pid}


def label_studio_answers(address: str) -> bool:
    """Return whether a Label Studio answers at an address."""
    try:
        with urllib.request.urlopen(f"{address}/health/", timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def is_label_studio(pid: int) -> bool:
    """Return whether a process is still the server, and not another with its old number."""
    try:
        return b"label-studio" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _installed(environment: Path) -> Path:
    """Return its program in an environment that has exactly what the requirements say."""
    program, wanted = environment / "bin" / "label-studio", REQUIREMENTS.read_text(encoding="utf-8")
    stamp = environment / "requirements.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return program
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise OSError("uv is not there")
    sys.stdout.write("installing Label Studio: 800 MB and some minutes, once\n")
    sys.stdout.flush()
    shutil.rmtree(environment, ignore_errors=True)
    made = [uv, "venv", "--quiet", "--python", sys.executable, str(environment)]
    subprocess.run(made, check=True, timeout=60)
    python = ["--python", str(environment / "bin" / "python")]
    filled = [uv, "pip", "install", "--quiet", *python, "--requirements", str(REQUIREMENTS)]
    subprocess.run(filled, check=True, timeout=1800)
    stamp.write_text(wanted, encoding="utf-8")
    return program


def _token(data: Path) -> str:
    """Return the token of the database that is there, else of a new one."""
    try:
        return str(json.loads((data / "token.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        return secrets.token_hex(20)


def _start(program: Path, data: Path, port: int, token: str) -> subprocess.Popen[bytes]:
    listening = ["--internal-host", "127.0.0.1", "--port", str(port)]
    user = ["--username", USER, "--password", secrets.token_hex(16), "--user-token", token]
    with data.with_name(f"{data.name}.log").open("wb") as log:
        return subprocess.Popen(
            [
                *(str(program), "start", "--no-browser", "--data-dir", str(data)),
                *("--host", f"http://127.0.0.1:{port}", "--enable-legacy-api-token"),
                *(*listening, *user),
            ],
            env={
                "HOME": str(data),
                "PATH": os.environ["PATH"],
                "COLLECT_ANALYTICS": "false",
                "LATEST_VERSION_CHECK": "false",
                "SENTRY_DSN": "",
                "FRONTEND_SENTRY_DSN": "",
                # The model that pre-labels, and what webhooks call, are on this machine, too.
                "ML_BLOCK_LOCAL_IP": "false",
                "SSRF_PROTECTION_ENABLED": "false",
            },
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not label_studio_answers(address):
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            server.wait()
            raise OSError("it did not come up")
        time.sleep(0.2)
