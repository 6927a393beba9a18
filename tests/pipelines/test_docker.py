"""The same pipeline in containers of the built images, without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.shades import TRAIN, write_shades

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tag() -> str:
    """The tag of images built from this revision, or the one that LINNET_IMAGE_TAG names."""
    if shutil.which("docker") is None:
        pytest.skip("needs Docker, which is not installed")
    revision = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    tag = os.environ.get("LINNET_IMAGE_TAG", revision.stdout.strip())
    for image in (f"linnet/cpu:{tag}", f"linnet/gpu:{tag}", f"linnet/serving:{tag}"):
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
        if found.returncode != 0:
            pytest.skip(f"needs the image {image} and a Docker engine: make images")
    return tag


def test_the_pipeline_runs_in_containers_without_a_network(tag: str, tmp_path: Path) -> None:
    environment = {**os.environ, "LINNET_IMAGE_TAG": tag}
    compiling = [sys.executable, "-W", "ignore", "-m", "pipelines.compile", str(tmp_path)]
    subprocess.run(compiling, cwd=ROOT, env=environment, check=True, capture_output=True)
    write_shades(tmp_path / "pictures", each=24)
    settings = tmp_path / "shades.yaml"
    source = {"uri": str(tmp_path / "pictures")}
    values = {"model": "shades", "source": source, "train": TRAIN}
    settings.write_text(yaml.safe_dump({**values, "ingest": {"near_duplicates": "ignore"}}))
    linnet = str(Path(sys.executable).with_name("linnet"))
    pipeline = str(tmp_path / "train_and_release.yaml")
    done = subprocess.run(
        [linnet, "run", str(settings), "--runner", "docker", "--pipeline", pipeline, "--json"],
        cwd=tmp_path,
        env={**environment, "LINNET_WORKSPACE": str(tmp_path / "workspace")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    released = json.loads(done.stdout)["release"]
    manifest = json.loads((Path(released["uri"]) / "release.json").read_text())
    assert manifest["provenance"]["code_revision"].startswith(tag)


def test_the_servers_image_has_at_most_300_megabytes_of_packages_and_no_torch(tag: str) -> None:
    program = (
        "import importlib.util, pathlib, sysconfig, linnet.inference.server, serving.__main__\n"
        "packages = pathlib.Path(sysconfig.get_path('purelib')).rglob('*')\n"
        "size = sum(file.stat().st_size for file in packages if file.is_file())\n"
        "print(size, importlib.util.find_spec('torch'))\n"
    )
    image = f"linnet/serving:{tag}"
    running = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "python", image]
    done = subprocess.run([*running, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, torch = done.stdout.split()
    assert int(size) <= 300_000_000
    assert torch == "None"
