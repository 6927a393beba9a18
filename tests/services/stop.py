"""Stop the MinIO, the PostgreSQL and the Label Studio that start.py started.

python -m tests.services.stop
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.services.label_studio import is_label_studio
from tests.services.start import RECORD, read_record, run_postgres


def main() -> int:
    """Stop what is recorded and runs, and forget it."""
    record = read_record()
    if (pid := record.get("minio", {}).get("pid")) and _is_minio(pid):
        os.kill(pid, signal.SIGTERM)
        sys.stdout.write("minio: stopped\n")
    if (pid := record.get("label_studio", {}).get("pid")) and is_label_studio(pid):
        os.kill(pid, signal.SIGTERM)
        sys.stdout.write("label studio: stopped\n")
    if data := record.get("postgres", {}).get("data"):
        try:
            run_postgres("pg_ctl", "stop", "-m", "fast", "-D", data)
            sys.stdout.write("postgres: stopped\n")
        except subprocess.CalledProcessError as error:
            sys.stdout.write(f"postgres: {error.output}\n")
    RECORD.unlink(missing_ok=True)
    return 0


def _is_minio(pid: int) -> bool:
    """Return whether the process is still the server, and not another with its old number."""
    try:
        return b"minio\0server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
