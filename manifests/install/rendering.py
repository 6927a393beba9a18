"""Kustomizations rendered to objects: ours, and others' with our patches."""

import hashlib
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from manifests.install.kubectl import TOOLS, InstallError, Object, read

ROOT = Path(__file__).resolve().parents[1]
FETCHED = ROOT.parent / "build" / "third-party"


def overlays() -> list[str]:
    """Return the names of our overlays."""
    return sorted(path.parent.name for path in ROOT.glob("overlays/*/kustomization.yaml"))


def overlay(name: str) -> list[Object]:
    """Return the objects of one of our overlays."""
    return read(kustomize(ROOT / "overlays" / name))


def kustomize(what: Path | str) -> str:
    """Return the YAML of a kustomization in a folder or at an address.

    Raises:
        InstallError: it can't be built, or neither kubectl nor kustomize is there.
    """
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        raise InstallError(f"kubectl is not installed: {TOOLS}")
    done = subprocess.run([*command, str(what)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallError(f"{' '.join(command)} {what}: {done.stderr.strip()}")
    return done.stdout


class ThirdParty:
    """What others released, by the versions of versions.env: fetched once, or from a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.versions, self._addresses = _read_versions(ROOT / "third-party" / "versions.env")

    def render(self, name: str) -> list[Object]:
        """Return the objects of one of the folders beside versions.env.

        Raises:
            InstallError: what it builds on can't be had.
        """
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / name
            shutil.copytree(ROOT / "third-party" / name, place)
            shutil.copyfile(self._file(f"{name}.yaml"), place / "upstream.yaml")
            return read(kustomize(place))

    def _file(self, name: str) -> Path:
        address = self._addresses[name]
        if self._folder is None:
            return _fetched(name, address)
        if not (self._folder / name).is_file():
            raise InstallError(f"{self._folder} has no {name}: put there what {address} gives")
        return self._folder / name


def _fetched(name: str, address: str) -> Path:
    version = hashlib.sha256(address.encode()).hexdigest()[:12]
    file = FETCHED / version / name
    if file.exists():
        return file
    kind, _, target = address.partition(":")
    content = kustomize(target) if kind == "kustomize" else _download(address)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(content, encoding="utf-8")
    return part.rename(file)


def _download(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=120) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, OSError) as error:
        raise InstallError(
            f"can't fetch {address} ({error}): put the file into a folder and give that as "
            "THIRD_PARTY"
        ) from error


def _read_versions(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions and, with these put in, the address of each file."""
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = dict(line.split("=", 1) for line in lines if line)
    versions = {key: value for key, value in pairs.items() if key.isupper()}
    addresses = {
        key: re.sub(r"\$\{(\w+)\}", lambda found: versions[found[1]], value)
        for key, value in pairs.items()
        if key not in versions
    }
    return versions, addresses
