"""Entry point of the serving image: `linnet serve` with what KServe passes.

    python -m serving --model_name=NAME /mnt/models

Settings come from a YAML file that LINNET_SERVE_SETTINGS names, and from `--set key=value`; a token
from LINNET_TOKEN, the place of the prediction log from LINNET_LOG_TO.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from linnet.errors import LinnetError
from linnet.inference.logs import log_json
from linnet.inference.server import serve
from linnet.inference.settings import ServeSettings
from linnet.stores.connections import Connections


def main() -> int:
    """Serve until SIGTERM and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("releases", nargs="+", metavar="RELEASE")
    parser.add_argument("--model_name", help="what the only release is called here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    if given.model_name and len(given.releases) > 1:
        parser.error("--model_name is for one release: write name=RELEASE for several")
    log_json()
    try:
        overrides = ("host=0.0.0.0", *_of_environment(), *given.set)
        settings = ServeSettings.load(_settings_file(), overrides)
        serve(
            [f"{given.model_name}={given.releases[0]}"] if given.model_name else given.releases,
            settings,
            connections=Connections.from_environment(Path("/tmp/workspace")),
        )
    except LinnetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _settings_file() -> Path | None:
    name = os.environ.get("LINNET_SERVE_SETTINGS")
    return Path(name) if name else None


def _of_environment() -> list[str]:
    names = {"token": "LINNET_TOKEN", "prediction_log.to": "LINNET_LOG_TO"}
    given = {key: os.environ.get(name) for key, name in names.items()}
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value]


if __name__ == "__main__":
    sys.exit(main())
