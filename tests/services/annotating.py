"""People who label in a real Label Studio, and the model that pre-labels for them."""

import contextlib
import http.cookiejar
import json
import os
import re
import secrets
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINNET = str(Path(sys.executable).with_name("linnet"))


class Person:
    """Somebody who signed up and annotates by the API, with a token of the older kind."""

    def __init__(self, address: str) -> None:
        self._address = address
        jar = http.cookiejar.CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        page = f"{address}/user/signup/"
        browser.open(page, timeout=60).close()
        csrf = next(cookie.value for cookie in jar if cookie.name == "csrftoken")
        email = f"{secrets.token_hex(6)}@linnet.example"
        form = {"email": email, "password": secrets.token_hex(8), "csrfmiddlewaretoken": csrf}
        form |= {"allow_newsletters": "false", "how_find_us": "", "elaborate": ""}
        request = urllib.request.Request(page, urllib.parse.urlencode(form).encode())
        request.add_header("Referer", page)
        browser.open(request, timeout=60).close()
        with browser.open(f"{address}/api/current-user/token", timeout=60) as answer:
            self.token = json.load(answer)["token"]

    def send(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self._address + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
            return json.loads(content) if content else None

    def choose(self, task: int, label: str) -> int:
        value = {"from_name": "label", "to_name": "picture", "type": "choices"}
        body = {"result": [{**value, "value": {"choices": [label]}}]}
        return int(self.send("POST", f"/api/tasks/{task}/annotations/", body)["id"])

    def skip(self, task: int) -> None:
        body = {"result": [], "was_cancelled": True}
        self.send("POST", f"/api/tasks/{task}/annotations/", body)


@contextlib.contextmanager
def backend(
    where: dict[str, Any], server: str, *more: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `linnet annotate backend` on a free port, and stop it."""
    command = [LINNET, "annotate", "backend", "--server", server, "--port", "0", *more]
    environment = {"LABEL_STUDIO_URL": where["address"], "LABEL_STUDIO_API_KEY": where["token"]}
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield found[0], process
    finally:
        process.kill()
        process.communicate()
