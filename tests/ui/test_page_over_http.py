"""What the page answers without a browser: limits, errors, headers, and its command."""

import http.client
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from linnet.client import Client
from linnet.stores.connections import Connections
from linnet.ui.app import Page
from linnet.ui.asking import open_model
from linnet.ui.known import follow
from linnet.ui.settings import PageSettings
from tests.serving.conftest import LINNET
from tests.serving.photographs import photographs
from tests.serving.tiny_release import write_release
from tests.ui.another_server import Another, serving
from tests.ui.conftest import MOST_BYTES, RED, PageProcess, Served

PICTURES = {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}
EVIL = "</script><img src=x onerror=alert(1)>"


def ask(
    url: str, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    answer = connection.getresponse()
    try:
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def error(answer: tuple[int, http.client.HTTPMessage, bytes]) -> str:
    return str(json.loads(answer[2])["error"])


@contextmanager
def page_of(another: Another, **settings: Any) -> Iterator[str]:
    """Run a page about another's model in this process, and yield its address."""
    with (
        serving(another),
        Client(another.url, model="brightest", retries=0) as client,
        running(Page(open_model(client), PageSettings(**settings))) as url,
    ):
        yield url


@contextmanager
def running(page: Page) -> Iterator[str]:
    """Run a page in this process, and yield its address."""
    app = page.app()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, loop="asyncio"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def test_every_answer_forbids_scripts_of_others_and_nothing_is_inline(
    page_process: PageProcess,
) -> None:
    for path in ("/", "/model", "/nowhere", "/static/ask.js", "/examples/v1/0", "/examples/v1/99"):
        _, headers, body = ask(page_process.url, "GET", path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        if headers["Content-Type"].startswith("text/html"):
            page = body.decode()
            assert not re.search(r"<script(?! type=\"module\" src=\"static/)|\son\w+=|style=", page)
            assert "http" not in page.replace("http-equiv", "")


def test_the_report_may_style_itself_but_not_run_anything(page_process: PageProcess) -> None:
    status, headers, body = ask(page_process.url, "GET", "/report")
    assert (status, b"accuracy" in body) == (200, True)
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "script-src" not in headers["Content-Security-Policy"]


def test_an_upload_of_200_megabytes_is_refused_before_it_is_sent(page_process: PageProcess) -> None:
    address = urlsplit(page_process.url)
    connection = http.client.HTTPConnection(address.netloc, timeout=10)
    connection.putrequest("POST", "/answers")
    connection.putheader("Content-Length", str(200 << 20))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "larger than the limit of 0.286102 MiB" in json.loads(answer.read())["error"]
    connection.close()


def test_an_upload_that_hides_its_length_is_cut_at_the_limit(page_process: PageProcess) -> None:
    connection = http.client.HTTPConnection(urlsplit(page_process.url).netloc, timeout=10)
    pieces = iter([bytes(MOST_BYTES), b"1"])
    connection.request("POST", "/answers", pieces, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_wrong_pictures_are_refused_in_words(page_process: PageProcess) -> None:
    empty = ask(page_process.url, "POST", "/answers", b"")
    assert (empty[0], "the file is empty" in error(empty)) == (400, True)
    broken = ask(page_process.url, "POST", "/answers", b"no picture")
    assert broken[0] == 400
    assert error(broken).startswith("the picture can't be used")
    assert "127.0.0.1" not in error(broken)


def test_what_other_sites_and_other_names_send_is_refused(page_process: PageProcess) -> None:
    elsewhere = ask(page_process.url, "POST", "/answers", RED, Sec_Fetch_Site="cross-site")
    assert elsewhere[0] == 403
    for path in ("/", "/model", "/static/ask.js", "/nowhere"):
        assert ask(page_process.url, "GET", path, Host="evil.example")[0] == 400
    assert ask(page_process.url, "GET", "/health", Host="10.0.0.1:8090")[0] == 200


@pytest.mark.parametrize(
    ("status", "told", "words"),
    [
        (429, 429, "the model is busy"),
        (500, 502, "the model failed"),
        (0, 502, "the model does not answer at the moment"),
    ],
)
def test_the_server_s_troubles_are_told_without_its_address(
    status: int, told: int, words: str
) -> None:
    with page_of(Another(PICTURES, status=status)) as url:
        answer = ask(url, "POST", "/answers", RED)
        assert ask(url, "GET", "/health")[0] == 200
    assert answer[0] == told
    assert words in error(answer)
    assert "127.0.0.1" not in error(answer)
    assert (answer[1]["Retry-After"] is not None) == (told == 429)


def test_a_slow_upload_ends_in_time() -> None:
    with page_of(Another(PICTURES), upload_timeout_s=0.2) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.putrequest("POST", "/answers")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"12345")
        assert connection.getresponse().status == 408
        connection.close()


def test_a_page_without_a_release_says_what_it_lacks() -> None:
    with page_of(Another(PICTURES)) as url:
        assert ask(url, "GET", "/examples/v1/0")[0] == 404
        assert ask(url, "GET", "/report")[0] == 404
        assert b"--release" in ask(url, "GET", "/model")[2]
        assert b"Or try one" not in ask(url, "GET", "/")[2]


def test_after_a_promotion_the_page_tells_of_the_new_release(
    served: Served, tmp_path: Path
) -> None:
    connections = Connections.from_environment(served.workspace, {})
    with Client(served.server.url, model="colours") as client:
        model = open_model(client)
        follows = partial(follow, model=model, scratch=tmp_path, connections=connections)
        page = Page(model, PageSettings(look_again_s=0.05), known=follows(None), follow=follows)
        with running(page) as url:

            def tells_of(version: str) -> bool:
                shown = ask(url, "GET", "/model")[2] + ask(url, "GET", "/")[2]
                return f"<dd>colours/{version}</dd>" in (words := shown.decode()) and (
                    f'"examples/{version}/0"' in words
                )

            assert tells_of("v1")
            served.load("v2")
            try:
                until = time.monotonic() + 20
                while not tells_of("v2"):
                    assert time.monotonic() < until
                    time.sleep(0.1)
                assert ask(url, "GET", "/examples/v2/0")[0] == 200
                assert "of another release" in error(ask(url, "GET", "/examples/v1/0"))
            finally:
                served.load("v1")


def test_in_a_rollout_the_page_stays_with_the_release_that_still_answers() -> None:
    another = Another(PICTURES, properties={"release": "m/v1"})
    with serving(another), Client(another.url, model="brightest") as client:
        model = open_model(client)
        another.taking_turns = ["m/v2", "m/v1"]
        model.look_again()
        assert model.release == "m/v1"
        another.taking_turns = ["m/v2"]
        another.properties["classes"] = ["a", "b", "c"]
        model.look_again()
        assert (model.release, model.classes) == ("m/v2", ("a", "b", "c"))
        assert model.answer(RED).release == "m/v2"


def test_names_that_look_like_markup_stay_names() -> None:
    another = Another(PICTURES, properties={"classes": [EVIL, "b", "c"], "release": EVIL})
    with page_of(another) as url:
        for path in ("/", "/model"):
            body = ask(url, "GET", path)[2].decode()
            assert EVIL not in body
            assert "&lt;/script&gt;" in body
        assert json.loads(ask(url, "POST", "/answers", RED)[2])["label"] == EVIL


def linnet_ui(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LINNET), "ui", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_without_a_server_the_command_says_so_and_ends(tmp_path: Path) -> None:
    ended = linnet_ui("--server", "http://127.0.0.1:1", "--model", "x", cwd=tmp_path)
    assert ended.returncode == 1
    assert "http://127.0.0.1:1 can't be reached" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_release_of_another_model_is_refused(served: Served, tmp_path: Path) -> None:
    other = write_release(tmp_path / "releases", photographs())
    ended = linnet_ui("--server", served.server.url, "--release", str(other), cwd=tmp_path)
    assert ended.returncode == 2
    assert "knows the classes daisy" in ended.stderr
    assert "colours on the server answers blue, green, red" in ended.stderr


def test_a_port_that_is_taken_is_told(served: Served, tmp_path: Path) -> None:
    ended = linnet_ui(
        "--server", served.server.url, "--port", str(served.server.rest_port), cwd=tmp_path
    )
    assert ended.returncode == 1
    assert "choose another --port" in ended.stderr
