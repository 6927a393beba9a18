"""The browser that the page's tests need: Chromium, installed or from Debian.

    python tests/ui/browser.py

Where it can't be had its tests skip; with LINNET_REQUIRE_SERVICES=1 that is an error.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class UnavailableError(Exception):
    """There is no browser here, and why."""


def main() -> int:
    """Install a browser unless there is one."""
    try:
        where = find() or _install()
    except UnavailableError as error:
        sys.stdout.write(f"chromium: {error}\n")
        return 1 if os.environ.get("LINNET_REQUIRE_SERVICES") == "1" else 0
    sys.stdout.write(f"chromium: {where}\n")
    return 0


def find() -> str | None:
    """Return Chromium or Chrome: the system's, or one that `playwright install` has brought."""
    if installed := next(filter(None, map(shutil.which, _NAMES)), None):
        return installed
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def _install() -> str:
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise UnavailableError("not installed: `playwright install chromium`, or your system's")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"]
    subprocess.run(["apt-get", "update", "-q"], env=environment, check=False)
    subprocess.run(install, env=environment, check=False)
    if found := shutil.which("chromium"):
        return found
    raise UnavailableError("not installed, and apt-get can't install it")


if __name__ == "__main__":
    sys.exit(main())
