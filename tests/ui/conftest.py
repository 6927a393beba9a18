"""Two releases with real reports, a server that answers for them, the page, and a browser."""

import io
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from linnet.release.bundle import release
from linnet.settings import ReleaseSettings
from linnet.stores.connections import Connections
from linnet.stores.tracking import Tracker
from tests.release_parts import write_dataset, write_graph, write_report
from tests.serving.conftest import LINNET, Running, free_port, launch, wait_until_ready
from tests.ui import browser as browsers

MOST_BYTES = 300_000

expect.set_options(timeout=20_000)


def picture(red: int, green: int, blue: int, form: str = "PNG", side: int = 64) -> bytes:
    """Return a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (red, green, blue)).save(file, form)
    return file.getvalue()


RED, BLUE, GREY = picture(200, 0, 0), picture(0, 0, 200), picture(90, 90, 90)


@dataclass(frozen=True)
class Served:
    """A workspace with the releases colours/v1 and v2, and the server that answers for v1.

    `current` is a link to the release that the server reads when the model is loaded again.
    """

    workspace: Path
    current: Path
    server: Running

    def load(self, version: str) -> None:
        """Let the server answer with another release under the same name."""
        self.current.unlink()
        self.current.symlink_to(self.workspace / "releases" / "colours" / version)
        request = urllib.request.Request(
            f"{self.server.url}/v2/repository/models/colours/load",
            data=json.dumps({}).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=30) as loaded:
            assert loaded.status == 200


@dataclass(frozen=True)
class PageProcess:
    """`linnet ui`, running."""

    process: subprocess.Popen[str]
    url: str


StartPage = Callable[..., PageProcess]


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield a real server of a release that was tracked, judged and registered."""
    folder = tmp_path_factory.mktemp("ui")
    workspace = folder / "workspace"
    connections = Connections.from_environment(workspace, {})
    with Tracker.start(connections, experiment="colours") as tracker:
        for epoch, value in enumerate((0.5, 0.8, 0.9), start=1):
            tracker.metrics({"val_accuracy": value, "train_loss": 1 - value}, step=epoch)
    graph = write_graph(folder / "graph", run_id=tracker.run_id)
    dataset = write_dataset(folder / "dataset")
    report = write_report(folder / "report", graph, dataset, robustness_pictures=3)
    for _ in range(2):
        made = release(
            graph,
            report,
            dataset,
            model="colours",
            settings=ReleaseSettings(),
            connections=connections,
        )
        _abstain(Path(made.uri))
    current = folder / "current"
    current.symlink_to(workspace / "releases" / "colours" / "v1")
    server = launch(folder, f"colours={current}", options=("--repository-api",))
    try:
        wait_until_ready(server)
        yield Served(workspace, current, server)
    finally:
        server.stop()


def _abstain(folder: Path) -> None:
    """Let a release abstain from what it gives less than a half."""
    path = folder / "release.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "abstain_below": 0.5}), encoding="utf-8")


@pytest.fixture(scope="package")
def start_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPage]:
    """Start pages as `linnet ui` does; all are stopped at the end."""
    started: list[PageProcess] = []

    def start(server: str, *options: str) -> PageProcess:
        port = free_port()
        process = subprocess.Popen(
            [str(LINNET), "ui", "--server", server, "--port", str(port), *options],
            cwd=tmp_path_factory.mktemp("page"),
            env={**os.environ, "COLUMNS": "500", "PYTHONDONTWRITEBYTECODE": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = process.stderr.readline()
        while said and not (found := re.search(r"http://127\S+", said)):
            said = process.stderr.readline()
        assert found, "the page did not start"
        started.append(PageProcess(process, found[0]))
        return started[-1]

    yield start
    for page in started:
        page.process.terminate()
        page.process.communicate(timeout=30)
        assert page.process.returncode == 0


@pytest.fixture(scope="package")
def page_process(served: Served, start_page: StartPage) -> PageProcess:
    """The page that most tests share: a small limit, so that it can be reached."""
    return start_page(
        *(served.server.url, "--model", "colours", "--workspace", str(served.workspace)),
        *("--set", f"max_picture_bytes={MOST_BYTES}"),
    )


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Yield a headless browser with a camera that shows a test picture."""
    found = browsers.find()
    if found is None:
        reason = "there is no Chromium here: make tools"
        if os.environ.get("LINNET_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*camera, *sandbox])
        browser.new_context().close()
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, page_process: PageProcess) -> Iterator[Page]:
    """Yield the page in a fresh browser context; whatever its scripts complain of fails the test.

    Failed loads are not complaints: the tests of errors bring them about.
    """
    with chromium.new_context(base_url=page_process.url) as context:
        context.set_default_timeout(15_000)
        opened = context.new_page()
        complaints: list[str] = []
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        opened.goto("/")
        yield opened
        assert complaints == []
