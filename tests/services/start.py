"""Install and start a MinIO, a PostgreSQL and a Label Studio on 127.0.0.1, for the tests.

    python -m tests.services.start

What runs already stays as it is. Where they are goes to build/services/services.json; what can't
be had goes there with its reason, and the tests skip with it. With LINNET_REQUIRE_SERVICES=1 that
is an error.
"""

import glob
import hashlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.services.label_studio import running_label_studio

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "services"
RECORD = FOLDER / "services.json"
# The last source that was published; there are no binaries any more.
MINIO_MODULE = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"


class UnavailableError(Exception):
    """A service can't be had here, and why."""


def main() -> int:
    """Start what is not running and record where everything is."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    known = read_record()
    record = {
        "minio": _running_minio(known.get("minio", {})),
        "postgres": _running_postgres(known.get("postgres", {})),
        "label_studio": running_label_studio(FOLDER, known.get("label_studio", {}), free_port()),
    }
    RECORD.write_text(json.dumps(record, indent=1), encoding="utf-8")
    missing = 0
    for name, service in record.items():
        reason = service.get("unavailable")
        missing += reason is not None
        sys.stdout.write(f"{name}: {reason or service['address']}\n")
    return 1 if missing and os.environ.get("LINNET_REQUIRE_SERVICES") == "1" else 0


def read_record() -> dict[str, Any]:
    """Return what was recorded at the last start."""
    try:
        return dict(json.loads(RECORD.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def serve_minio(data: Path, port: int, access_key: str, secret_key: str) -> subprocess.Popen[bytes]:
    """Start a MinIO server on a folder and wait until it answers.

    Raises:
        UnavailableError: it can't be built, or does not come up.
    """
    data.mkdir(parents=True, exist_ok=True)
    with data.with_name(f"{data.name}.log").open("wb") as log:
        server = subprocess.Popen(
            [_minio(), "server", "--quiet", "--address", f"127.0.0.1:{port}", str(data)],
            env={
                "HOME": str(data.parent),
                "PATH": os.environ["PATH"],
                "MINIO_ROOT_USER": access_key,
                "MINIO_ROOT_PASSWORD": secret_key,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
            },
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while not minio_answers(f"http://127.0.0.1:{port}"):
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            server.wait()
            raise UnavailableError(f"MinIO did not come up, see {data}.log")
        time.sleep(0.1)
    return server


def minio_answers(endpoint: str) -> bool:
    """Return whether a MinIO at an endpoint is ready for requests."""
    try:
        with urllib.request.urlopen(f"{endpoint}/minio/health/live", timeout=5) as response:
            # While it still opens its folder it answers 200, and says so in a header.
            return response.status == 200 and "x-minio-server-status" not in response.headers
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_postgres(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs; as its own user when we are root, which it refuses."""
    owner = _postgres_owner()
    return subprocess.run(
        [str(_postgres_bin() / tool), *arguments],
        user=owner if os.getuid() == 0 else None,
        extra_groups=[] if os.getuid() == 0 else None,
        cwd="/",
        check=True,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _running_minio(known: dict[str, Any]) -> dict[str, Any]:
    if "address" in known and minio_answers(known["address"]):
        return known
    shutil.rmtree(FOLDER / "minio", ignore_errors=True)
    try:
        access_key, secret_key, port = "linnet", secrets.token_hex(16), free_port()
        server = serve_minio(FOLDER / "minio", port, access_key, secret_key)
    except UnavailableError as error:
        return {"unavailable": str(error)}
    return {
        "address": f"http://127.0.0.1:{port}",
        "access_key": access_key,
        "secret_key": secret_key,
        "pid": server.pid,
    }


def _minio() -> str:
    """Return MinIO's program: one that is installed, or built from its Go module."""
    built = FOLDER / "bin" / "minio"
    if built.exists():
        return str(built)
    if installed := shutil.which("minio"):
        return installed
    if not shutil.which("go"):
        raise UnavailableError("MinIO is not installed, and building it needs Go: install go 1.24")
    sys.stdout.write(f"building {MINIO_MODULE}: some minutes, once\n")
    sys.stdout.flush()
    try:
        subprocess.run(
            ["go", "install", MINIO_MODULE],
            env={**os.environ, "GOBIN": str(built.parent)},
            cwd=FOLDER,
            check=True,
            timeout=1800,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise UnavailableError(f"MinIO could not be built from its Go module: {error}") from error
    return str(built)


def _running_postgres(known: dict[str, Any]) -> dict[str, Any]:
    try:
        if "data" in known and _postgres_answers(known["data"]):
            return known
        data = _postgres_data()
        password = secrets.token_hex(16)
        port = free_port()
        _make_cluster(data, password)
        settings = f"-p {port} -h 127.0.0.1 -c unix_socket_directories= -c fsync=off"
        log = str(data.with_name(f"{data.name}.log"))
        run_postgres("pg_ctl", "start", "-w", "-D", str(data), "-l", log, "-o", settings)
    except subprocess.CalledProcessError as error:
        return {"unavailable": f"{error.cmd[0]} failed: {error.output}"}
    except (UnavailableError, OSError) as error:
        return {"unavailable": str(error)}
    return {
        "address": f"127.0.0.1:{port}",
        "user": "linnet",
        "password": password,
        "data": str(data),
    }


def _make_cluster(data: Path, password: str) -> None:
    """Make a new cluster; an old one that is not running goes, for its password is forgotten."""
    shutil.rmtree(data, ignore_errors=True)
    data.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(password)
        file.flush()
        if os.getuid() == 0:
            owner = pwd.getpwnam(_postgres_owner())
            os.chown(file.name, owner.pw_uid, owner.pw_gid)
            os.chown(data.parent, owner.pw_uid, owner.pw_gid)
        how = ["--auth=scram-sha-256", f"--pwfile={file.name}", "--encoding=UTF8", "--no-locale"]
        run_postgres("initdb", "-D", str(data), "-U", "linnet", "--no-sync", *how)


def _postgres_answers(data: str) -> bool:
    try:
        run_postgres("pg_ctl", "status", "-D", data)
    except subprocess.CalledProcessError:
        return False
    return True


def _postgres_data() -> Path:
    """Return the cluster's folder; root's own folders may be closed to PostgreSQL's user."""
    if os.getuid() != 0:
        return FOLDER / "postgres"
    checkout = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"linnet-postgres-{checkout}" / "data"


def _postgres_owner() -> str:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise UnavailableError("PostgreSQL does not run as root, and there is no other user")


def _postgres_bin() -> Path:
    found = sorted(
        (Path(path).parent for path in glob.glob("/usr/lib/postgresql/*/bin/initdb")),
        key=lambda path: float(path.parent.name),
    )
    if found:
        return found[-1]
    if installed := shutil.which("initdb"):
        return Path(installed).resolve().parent
    if not _install_postgres():
        raise UnavailableError("PostgreSQL is not installed: apt-get install postgresql, as root")
    return _postgres_bin()


def _install_postgres() -> bool:
    if os.getuid() != 0 or not shutil.which("apt-get"):
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"]
    subprocess.run(["apt-get", "update", "-q"], env=environment, check=False)
    subprocess.run(install, env=environment, check=False)
    return bool(glob.glob("/usr/lib/postgresql/*/bin/initdb"))


if __name__ == "__main__":
    sys.exit(main())
