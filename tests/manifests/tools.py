"""The programs that the tests of manifests need: those installed, or built from their Go modules.

    python tests/manifests/tools.py

What can't be had makes its tests skip; with LINNET_REQUIRE_SERVICES=1 that is an error.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BIN = Path(__file__).resolve().parents[2] / "build" / "bin"


class UnavailableError(Exception):
    """A program can't be had here, and why."""


@dataclass(frozen=True)
class Tool:
    """A program, and the Go package that it is built of."""

    name: str
    module: str
    version: str
    package: str
    tags: str = ""
    # A program that does as well.
    instead: str = ""


TOOLS = (
    Tool("helm", "helm.sh/helm/v3", "v3.22.0", "./cmd/helm"),
    # Without the service discoveries, which promtool's tests of rules don't need: half the time.
    Tool(
        "promtool",
        "github.com/prometheus/prometheus",
        "v0.315.0",
        "./cmd/promtool",
        "remove_all_sd",
    ),
    Tool("kustomize", "sigs.k8s.io/kustomize/kustomize/v5", "v5.8.3", ".", instead="kubectl"),
)


def main() -> int:
    """Build what is neither installed nor built."""
    missing = 0
    for tool in TOOLS:
        try:
            where = find(tool.name) or find(tool.instead or tool.name) or _build(tool)
        except UnavailableError as error:
            missing += 1
            where = str(error)
        sys.stdout.write(f"{tool.name}: {where}\n")
    return 1 if missing and os.environ.get("LINNET_REQUIRE_SERVICES") == "1" else 0


def find(name: str) -> str | None:
    """Return a program that was built here, or that is installed."""
    built = BIN / name
    return str(built) if built.exists() else shutil.which(name)


def _build(tool: Tool) -> str:
    if not shutil.which("go"):
        raise UnavailableError(f"not installed, and building {tool.module} needs Go: install go")
    sys.stdout.write(f"building {tool.module} {tool.version}: a minute or two, once\n")
    sys.stdout.flush()
    BIN.mkdir(parents=True, exist_ok=True)
    try:
        # Not by `go install`: it refuses modules that replace others, as Prometheus does.
        module = f"{tool.module}@{tool.version}"
        source = json.loads(_go(["mod", "download", "-json", module], BIN))["Dir"]
        _go(
            [
                "build",
                "-trimpath",
                "-ldflags",
                "-s -w",
                "-o",
                str(BIN / tool.name),
                "-tags",
                tool.tags,
                tool.package,
            ],
            Path(source),
        )
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        raise UnavailableError(f"could not be built from {tool.module}: {error}") from error
    return str(BIN / tool.name)


def _go(arguments: list[str], folder: Path) -> bytes:
    done = subprocess.run(
        ["go", *arguments],
        env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"},
        cwd=folder,
        check=True,
        timeout=1800,
        stdout=subprocess.PIPE,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
