"""Our dashboards in the Grafana that LINNET_GRAFANA_URL names, as a browser shows them.

It has to have them, and numbers of a model that answers, logs and gets true labels, and of a watch
that looks for drift. A user may be part of the address: http://admin:password@127.0.0.1:3000.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

BOARDS = Path(__file__).parents[2] / "helm" / "linnet" / "files" / "dashboards"


@pytest.fixture(scope="module")
def grafana(chromium: Browser) -> Iterator[Page]:
    """Yield a page that is tall enough for Grafana to draw every panel."""
    if not (url := os.environ.get("LINNET_GRAFANA_URL")):
        pytest.skip("needs a Grafana with our dashboards: LINNET_GRAFANA_URL names none")
    where = urlsplit(url)
    user, _, place = where.netloc.rpartition("@")
    said = {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"} if user else {}
    with chromium.new_context(
        base_url=f"{where.scheme}://{place}",
        extra_http_headers=said,
        viewport={"width": 1600, "height": 1600},
    ) as context:
        yield context.new_page()


@pytest.mark.parametrize("path", sorted(BOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_every_panel_of_a_dashboard_shows_data(grafana: Page, path: Path) -> None:
    board = json.loads(path.read_text("utf-8"))
    grafana.goto(f"/d/{board['uid']}/?kiosk&from=now-15m&to=now")
    for panel in board["panels"]:
        drawn = grafana.get_by_test_id(f"data-testid Panel header {panel['title']}")
        expect(_content(panel, drawn).first).to_be_visible()
    expect(grafana.get_by_text("No data")).to_have_count(0)


def _content(panel: dict[str, Any], drawn: Locator) -> Locator:
    """Return the plot of a panel, or one of the words that stand for a number's values."""
    if panel["type"] != "stat":
        return drawn.locator(".uplot canvas")
    (words,) = panel["fieldConfig"]["defaults"]["mappings"]
    texts = "|".join(word["text"] for word in words["options"].values())
    return drawn.get_by_text(re.compile(f"^({texts})$"))
