"""Label Studio's REST API, as far as the loop needs it: plain JSON, time limits, errors of ours.

Read in Label Studio 1.23's own source; https://api.labelstud.io describes it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from linnet.errors import (
    AnnotationAbsentError,
    AnnotationDeniedError,
    AnnotationError,
    AnnotationUnreachableError,
    SettingsError,
)
from linnet.rest_pool import cause_of, is_address, open_pool, parsed

_READ_S = 120.0
_PAGE = 100
_SHOWN = 600
# A personal access token is a JWT: three parts. A legacy token is 40 hexadecimal digits.
_JWT_DOTS = 2


@dataclass(frozen=True)
class Project:
    """A project of Label Studio; `config` is its labelling configuration, XML."""

    id: int
    title: str
    config: str


class LabelStudio:
    """One Label Studio, and who asks it: by a personal access token or a legacy one."""

    def __init__(self, address: str, token: str | None) -> None:
        """Remember where it is.

        Raises:
            SettingsError: the address is no URL, or there is no token.
        """
        if not is_address(address):
            raise SettingsError(
                f"{address!r} is not Label Studio's address: give something like "
                "http://127.0.0.1:8080 with --label-studio"
            )
        if not token:
            raise SettingsError(
                "no token for Label Studio: make one on its page Account & Settings, and set "
                "LABEL_STUDIO_API_KEY to it"
            )
        self.address = address.rstrip("/")
        self._token = token.strip()
        self._access: str | None = None
        self._pool = open_pool(read_s=_READ_S)

    def find(self, title: str) -> Project | None:
        """Return the project of this title, None when there is none.

        Raises:
            AnnotationError: several have it.
        """
        found = [row for row in self._pages("/api/projects", title=title) if row["title"] == title]
        if len(found) > 1:
            ids = ", ".join(str(row["id"]) for row in found)
            raise AnnotationError(
                f"{len(found)} projects at {self.address} are called {title!r} (ids {ids}): rename "
                "or delete all but one"
            )
        return _project(found[0]) if found else None

    def get(self, title: str) -> Project:
        """Return the project of this title.

        Raises:
            AnnotationAbsentError: there is none.
        """
        project = self.find(title)
        if project is None:
            raise AnnotationAbsentError(
                f"there is no project {title!r} at {self.address}, or it is not shown to this "
                "user: `linnet annotate setup` makes it"
            )
        return project

    def make(self, title: str, config: str, **fields: Any) -> Project:
        """Make a project."""
        body = {"title": title, "label_config": config, **fields}
        return _project(self._json("POST", "/api/projects", body))

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """Return all tasks of a project with their annotations."""
        query = {"exportType": "JSON", "download_all_tasks": "true"}
        return list(self._json("GET", f"/api/projects/{project}/export", query=query, kind=list))

    def add_pictures(
        self, project: int, files: Mapping[str, bytes], task: Callable[[str, str], dict[str, Any]]
    ) -> None:
        """Upload pictures by name and make a task of each, in order: of all of them or none.

        `task` makes the task of a picture's name and its address.
        """
        fields = {f"file{n}": (name, content) for n, (name, content) in enumerate(files.items())}
        path = f"/api/projects/{project}/import"
        query = {"commit_to_project": "false"}
        ids = self._json("POST", path, query=query, files=fields)["file_upload_ids"]
        try:
            stored = self._uploaded(project, ids)
            self._json("POST", path, [task(name, f"/data/{stored[name]}") for name in files])
        except AnnotationUnreachableError:
            # The tasks may have been made all the same.
            raise
        except AnnotationError:
            self._send("DELETE", f"/api/projects/{project}/file-uploads", {"file_upload_ids": ids})
            raise

    def _uploaded(self, project: int, ids: Sequence[int]) -> dict[str, str]:
        """Return the files of uploads by the names that they came with."""
        query = {"ids": json.dumps(ids)}
        listed = self._json("GET", f"/api/projects/{project}/file-uploads", query=query, kind=list)
        # Label Studio puts a random word before the name.
        return {str(row["file"]).rpartition("-")[2]: str(row["file"]) for row in listed}

    def picture(self, address: str) -> bytes:
        """Return the picture that a task names.

        Raises:
            AnnotationAbsentError: it is not there, or not on this Label Studio.
        """
        if not address:
            raise AnnotationAbsentError("the task names no picture")
        url = urljoin(f"{self.address}/", address)
        if urlsplit(url)[:2] != urlsplit(self.address)[:2]:
            raise AnnotationAbsentError(f"{address} is not on {self.address}: it is not fetched")
        path = url.removeprefix(f"{urlsplit(self.address).scheme}://").partition("/")[2]
        status, content = self._send("GET", f"/{path}", base=_origin(self.address))
        # It fails with 500 where it has forgotten the file.
        if status in (404, 500):
            raise AnnotationAbsentError(f"{url} answers HTTP {status}: the picture is gone")
        if status != 200:
            raise AnnotationError(f"{url} answers HTTP {status}: try again later")
        return content

    def connect_backend(self, project: int, url: str, title: str) -> bool:
        """Let a model at `url` pre-label; return whether that is new."""
        known = self._json("GET", "/api/ml", query={"project": str(project)}, kind=list)
        if any(row["url"].rstrip("/") == url.rstrip("/") for row in known):
            return False
        self._json("POST", "/api/ml", {"project": project, "url": url, "title": title})
        return True

    def connect_webhook(self, project: int, url: str) -> bool:
        """Let Label Studio call `url` when annotations change; return whether that is new."""
        known = self._json("GET", "/api/webhooks/", query={"project": str(project)}, kind=list)
        if any(row["url"] == url for row in known):
            return False
        actions = ("CREATED", "UPDATED", "DELETED")
        body = {
            "project": project,
            "url": url,
            "send_payload": False,
            "send_for_all_actions": False,
            "actions": [f"ANNOTATION{'S' * (name == 'DELETED')}_{name}" for name in actions],
        }
        self._json("POST", "/api/webhooks/", body)
        return True

    def _pages(self, path: str, **query: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = {"page": str(len(rows) // _PAGE + 1), "page_size": str(_PAGE)}
            said = self._json("GET", path, query={**query, **page})
            rows += said["results"]
            if len(rows) >= said["count"] or not said["results"]:
                return rows

    def _json(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        kind: type = dict,
    ) -> Any:
        shown = f"{method} {path}"
        path = f"{path}?{urlencode(query)}" if query else path
        status, content = self._send(method, path, body, files=files)
        if status not in (200, 201):
            raise AnnotationError(
                f"Label Studio at {self.address} refused {shown} (HTTP {status}): {_said(content)}"
            )
        answer = parsed(content, kind)
        if answer is None:
            raise AnnotationError(
                f"what answers at {self.address} is not Label Studio ({shown} gave no JSON): give "
                "the address that its pages are at"
            )
        return answer

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        base: str | None = None,
    ) -> tuple[int, bytes]:
        url = (base or self.address) + path
        answer = self._request(method, url, body, files)
        if answer.status == 401 and self._access is not None:
            # An access token lives for five minutes.
            self._access = None
            answer = self._request(method, url, body, files)
        if answer.status in (401, 403) or 300 <= answer.status < 400:
            raise AnnotationDeniedError(
                f"Label Studio at {self.address} does not let us in (HTTP {answer.status}): "
                f"{_said(answer.data)}. Check LABEL_STUDIO_API_KEY, and that its user may see the "
                "project; a legacy token has to be allowed in the organization's settings"
            )
        return answer.status, answer.data

    def _request(
        self, method: str, url: str, body: Any, files: Mapping[str, tuple[str, bytes]] | None
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": self._authorization(), "Accept": "*/*"}
        if files is not None:
            return self._ask(method, url, headers=headers, fields=dict(files))
        return self._ask(method, url, headers=headers, json=body)

    def _authorization(self) -> str:
        if self._token.count(".") != _JWT_DOTS:
            return f"Token {self._token}"
        if self._access is None:
            url = f"{self.address}/api/token/refresh/"
            answer = self._ask("POST", url, json={"refresh": self._token})
            if answer.status != 200:
                raise AnnotationDeniedError(
                    f"Label Studio at {self.address} does not take the personal access token "
                    f"(HTTP {answer.status}): {_said(answer.data)}. Make a new one on its page "
                    "Account & Settings, and set LABEL_STUDIO_API_KEY to it"
                )
            self._access = str(json.loads(answer.data)["access"])
        return f"Bearer {self._access}"

    def _ask(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, url, **options)
        except urllib3.exceptions.HTTPError as error:
            cause = cause_of(error)
            raise AnnotationUnreachableError(
                f"Label Studio does not answer at {self.address} ({cause}): check the address, and "
                "that it runs (`label-studio start`)"
            ) from error


def _project(row: Mapping[str, Any]) -> Project:
    return Project(int(row["id"]), str(row["title"]), str(row["label_config"]))


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


def _said(content: bytes) -> str:
    """Return the server's own words from the body of an error."""
    try:
        answer = json.loads(content)
    except ValueError:
        return "it gives no reason"
    if not isinstance(answer, dict):
        return str(answer)[:_SHOWN]
    words = answer.get("validation_errors") or answer.get("detail") or answer
    return (words if isinstance(words, str) else json.dumps(words, ensure_ascii=False))[:_SHOWN]
