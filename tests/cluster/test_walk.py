"""docs/canary.md on a real cluster, under load: every command is the page's own text."""

import logging
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from linnet.rollout.cluster import Cluster
from linnet.rollout.settings import RolloutSettings
from linnet.rollout.traffic import KServeCanary
from tests.cluster.load import Load
from tests.cluster.serving_here import (
    GATEWAY,
    NAMESPACE,
    Model,
    pictures,
    request_body,
    store_connections,
)

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/canary.md").read_text()
NAMES = "NS=linnet-serving MODEL=flowers OLD=v1 NEW=v2"
COMMAND = re.compile(r"`((?:patch|wait_for|weights|metrics|kubectl)\b[^`]*)`")


class Walk:
    """The page's commands for a model of ours, with the patches of its names."""

    def __init__(self, model: Model, folder: Path, *, old: str, new: str) -> None:
        self._names = {"flowers": model.name, "v1": old, "v2": new}
        self._folder = folder / new
        shutil.copytree(REPOSITORY / "serving/canary", self._folder / "serving/canary")
        for patch in self._folder.rglob("*.yaml"):
            patch.write_text(self._ours(patch.read_text()))
        (self._folder / "serving/canary/rose.jpg").write_bytes(pictures()["2-flower.jpg"])
        ours = f"NS={NAMESPACE} MODEL={model.name} OLD={old} NEW={new}"
        self._setup = block("Before").replace(NAMES, ours)

    def do(self, *commands: str) -> str:
        """Paste the page's lines before the walk and these, and return what they say."""
        done = self._paste(*commands)
        assert done.returncode == 0, f"{commands}: {done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, command: str) -> str:
        done = self._paste(command)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def _paste(self, *commands: str) -> subprocess.CompletedProcess[str]:
        script = "\n".join(("set -eo pipefail", self._setup, *commands))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )

    def _ours(self, text: str) -> str:
        """Return the text with our names for its own; the protocol's version is none of them."""
        own = r"\bflowers\b|(?<!protocolVersion: )\b(?:v1|v2)\b"
        return re.sub(own, lambda found: self._names[found[0]], text)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def block(title: str) -> str:
    """Return the shell lines of a section."""
    return section(title).partition("```sh\n")[2].partition("```")[0]


def moves(title: str) -> list[list[str]]:
    """Return the commands of each numbered row of a section's table."""
    return [COMMAND.findall(row) for row in re.findall(r"^\| \d .*", section(title), re.MULTILINE)]


@pytest.fixture
def model(cluster: Cluster, store_url: str, tmp_path: Path) -> Iterator[Model]:
    connections = store_connections(cluster, store_url, tmp_path)
    made = Model(f"t{uuid.uuid4().hex[:6]}", cluster, connections, tmp_path / "releases")
    for version in ("v1", "v2", "v3"):
        made.release(version)
    made.serve("v1", replicas=1)
    settings = RolloutSettings.parse({"namespace": NAMESPACE})
    try:
        KServeCanary(cluster, made.name, settings).create("v1", "")
        yield made
    finally:
        made.remove()


def test_a_release_is_promoted_and_the_next_taken_back_by_the_page_s_own_lines(
    model: Model, tmp_path: Path
) -> None:
    out = Walk(model, tmp_path, old="v1", new="v2")
    with Load(GATEWAY, model.host, model.name, request_body()) as requests:
        requests.until(100)
        for number, commands in enumerate(moves("Out"), start=1):
            if number == 2:
                assert "The request is invalid" in out.refused("patch 5-promote.yaml")
                assert f"{model.name}/v2" in out.do(block("Ask the dark candidate"))
            out.do(*commands)
            requests.until(500)
        assert set(requests.answered) == {f"{model.name}/{one}" for one in ("v1", "v2")}
        back = Walk(model, tmp_path, old="v2", new="v3")
        dark, ten, half, *_ = moves("Out")
        back.do(*dark)
        back.do(*ten)
        back.do(*half)
        requests.until(200)
        assert "The request is invalid" in back.refused("patch back-2-remove.yaml")
        for commands in moves("Back"):
            back.do(*commands)
        requests.until(300)
        left = back.do("weights")
    logger.info("by the page's own lines; %s", requests.words())
    assert requests.lost == [], requests.words()
    assert {*left.split()} == {f"{model.name}-v2-predictor=1"}
