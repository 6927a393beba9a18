"""The page as people use it, in a real browser, before a real server."""

import base64
import csv
import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import APIResponse, Browser, Locator, Page, Route, expect

from tests.ui.conftest import (
    BLUE,
    GREY,
    MOST_BYTES,
    RED,
    PageProcess,
    Served,
    StartPage,
    picture,
)

BROKEN = RED[:20] + b"no more"

# Hands files to the page as a browser does after a drop or a paste.
_TRANSFER = """files => {
  const data = new DataTransfer();
  for (const [name, encoded] of files) {
    const bytes = Uint8Array.from(atob(encoded), one => one.charCodeAt(0));
    data.items.add(new File([bytes], name));
  }
  return data;
}"""
_PASTE = """data => document.body.dispatchEvent(
  new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}))"""


def file(name: str, encoded: bytes) -> Any:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": encoded}


def card(page: Page, name: str) -> Locator:
    """Return the answered card of a picture."""
    found = page.locator(".card", has_text=name)
    expect(found).to_be_visible()
    expect(found).not_to_have_attribute("aria-busy", "true")
    return found


def transfer(page: Page, *files: tuple[str, bytes]) -> Any:
    return page.evaluate_handle(
        _TRANSFER, [[name, base64.b64encode(encoded).decode()] for name, encoded in files]
    )


def test_a_chosen_picture_is_answered_with_bars_and_its_release(page: Page) -> None:
    page.set_input_files("#files", [file("red.png", RED)])
    said = card(page, "red.png")
    expect(said.locator("h3")).to_have_text(re.compile(r"^red 96\.\d %$"), use_inner_text=True)
    bars = said.locator(".answer > .bars li")
    expect(bars).to_have_count(3)
    expect(bars.first).to_have_class("is")
    assert bars.first.locator(".track i").evaluate("bar => bar.style.width").startswith("96.")
    expect(said.locator(".by")).to_have_text(re.compile(r"Answered by colours/v\d in \d+ ms"))
    expect(page.locator("#spoken")).to_have_text(re.compile(r"red\.png: red, 96"))


def test_pictures_dropped_anywhere_are_answered(page: Page) -> None:
    data = transfer(page, ("red.png", RED), ("blue.png", BLUE))
    page.dispatch_event("h1", "dragenter", {"dataTransfer": data})
    expect(page.locator("#over")).to_be_visible()
    page.dispatch_event("h1", "drop", {"dataTransfer": data})
    expect(page.locator("#over")).to_be_hidden()
    expect(card(page, "red.png").locator(".label")).to_have_text("red")
    expect(card(page, "blue.png").locator(".label")).to_have_text("blue")


def test_a_dropped_link_is_explained(page: Page) -> None:
    data = page.evaluate_handle("() => new DataTransfer()")
    page.dispatch_event("h1", "drop", {"dataTransfer": data})
    expect(page.locator("#progress")).to_contain_text("save the picture first")


def test_a_pasted_picture_is_answered(page: Page) -> None:
    page.evaluate(_PASTE, transfer(page, ("image.png", BLUE)))
    expect(card(page, "image.png").locator(".label")).to_have_text("blue")


def test_many_pictures_are_answered_and_saved_as_a_table(page: Page) -> None:
    page.set_input_files("#files", [file(f"{number:02}.png", BLUE) for number in range(40)])
    expect(page.locator("#progress")).to_have_text("40 of 40 answered")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as CSV").click()
    rows = list(csv.DictReader(Path(saved.value.path()).read_text("utf-8").splitlines()))
    assert [row["file"] for row in rows] == [f"{number:02}.png" for number in range(40)]
    assert {row["label"] for row in rows} == {"blue"}
    assert float(rows[0]["blue"]) == float(rows[0]["score"])


def test_a_broken_file_is_told_in_words_and_harms_no_other(page: Page) -> None:
    page.set_input_files("#files", [file("cut.png", BROKEN), file("red.png", RED)])
    expect(card(page, "cut.png").locator(".error")).to_contain_text("The picture can't be used")
    expect(card(page, "cut.png").locator(".gone")).to_be_visible()
    expect(card(page, "red.png").locator(".label")).to_have_text("red")
    expect(page.locator("#progress")).to_have_text("1 of 2 answered, 1 failed")


def test_a_picture_above_the_limit_is_refused_without_being_sent(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    page.set_input_files("#files", [file("huge.jpg", bytes(MOST_BYTES + 1))])
    expect(card(page, "huge.jpg").locator(".error")).to_have_text(
        "It has 0.29 MiB; the limit is 0.29 MiB. Make it smaller."
    )
    assert "POST" not in sent


def test_the_model_may_rather_not_say(page: Page) -> None:
    page.set_input_files("#files", [file("grey.png", GREY)])
    said = card(page, "grey.png")
    expect(said.get_by_text("Not sure enough to say")).to_be_visible()
    expect(said.locator("h3")).to_contain_text("Closest: ")
    expect(page.locator("#spoken")).to_contain_text("not sure enough to say; closest is")


def test_an_example_is_answered_and_held_against_its_label(page: Page) -> None:
    expect(page.locator("#examples img")).to_have_count(8)
    page.locator("#examples button").first.click()
    expect(page.locator(".card .truth")).to_have_text("Its label says so, too")


def test_the_answer_is_explained_on_the_picture(page: Page) -> None:
    page.set_input_files("#files", [file("red.png", RED)])
    said = card(page, "red.png")
    why = said.get_by_role("button", name="Show why")
    why.click()
    overlay = said.locator(".overlay")
    expect(overlay).to_be_visible()
    assert overlay.evaluate("image => image.naturalWidth") == 320
    expect(said.locator(".reason")).to_contain_text("speaks most for red")
    expect(why).to_have_attribute("aria-pressed", "true")
    why.click()
    expect(overlay).to_be_hidden()


def test_the_camera_s_picture_is_answered(page: Page) -> None:
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator("#shutter")).to_be_hidden()
    expect(card(page, "camera ").locator(".label")).not_to_be_empty()


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.className"))

    # From here on, for the browser needs a moment to hand choosers over.
    page.on("filechooser", lambda _: None)
    page.keyboard.press("Tab")
    assert focused() == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused() == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([file("red.png", RED), file("blue.png", BLUE)])
    card(page, "red.png")
    card(page, "blue.png")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(3)
    page.locator(".card .remove").first.focus()
    for left in (2, 1, 0):
        page.keyboard.press("Enter")
        expect(page.locator(".card")).to_have_count(left)
    assert focused() == "files"


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_out(page: Page, colours: Any) -> None:
    page.emulate_media(color_scheme=colours)
    files = [file("red.png", RED), file("grey.png", GREY), file("cut.png", BROKEN)]
    page.set_input_files("#files", files)
    for one in files:
        card(page, one["name"])
    card(page, "red.png").get_by_role("button", name="Show why").click()
    expect(card(page, "red.png").locator(".overlay")).to_be_visible()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.goto("/model")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_nothing_is_wider_than_a_phone(chromium: Browser, page_process: PageProcess) -> None:
    with chromium.new_context(
        base_url=page_process.url, viewport={"width": 320, "height": 640}, is_mobile=True
    ) as context:
        phone = context.new_page()
        phone.goto("/")
        long = f"{'a-very-long-name' * 8}.png"
        phone.set_input_files("#files", [file(long, RED), file("wide.png", picture(9, 0, 0))])
        card(phone, long)
        card(phone, "wide.png")
        for where in ("", "/model"):
            if where:
                phone.goto(where)
            assert phone.evaluate("document.documentElement.scrollWidth") == 320


def test_the_model_page_has_the_report_the_matrix_and_the_history(page: Page) -> None:
    page.get_by_role("link", name="Model").click()
    expect(page.locator(".tiles")).to_contain_text("Accuracy")
    expect(page.locator(".matrix .hit")).to_have_text(["4", "4", "4"])
    expect(page.get_by_role("heading", name="When pictures are spoiled")).to_be_visible()
    history = page.locator("section", has_text="How it got here")
    for _ in range(60):
        if not history.get_by_text("it is being read").count():
            break
        page.wait_for_timeout(1000)
        page.reload()
    expect(history.locator("tbody th")).to_have_text(["v2 candidate", "v1 champion"])
    expect(history.locator("polyline")).to_have_count(2)
    page.get_by_role("link", name="The whole report").click()
    expect(page.locator("h1")).to_contain_text("accuracy on 12 test pictures")


def test_both_releases_are_told_while_two_answer(page: Page, served: Served) -> None:
    page.set_input_files("#files", [file("red.png", RED)])
    card(page, "red.png")
    served.load("v2")
    try:
        page.set_input_files("#files", [file("blue.png", BLUE)])
        expect(card(page, "blue.png").locator(".by")).to_contain_text("colours/v2")
        expect(card(page, "blue.png").locator(".bars li").first).to_contain_text("blue")
        expect(page.locator("#shares li")).to_contain_text(["colours/v1: ", "colours/v2: "])
        expect(page.locator("#shares")).to_contain_text("a rollout is going on")
    finally:
        served.load("v1")


def test_an_answer_that_comes_late_does_not_take_the_count_back(
    page: Page, served: Served, start_page: StartPage
) -> None:
    late: list[tuple[Route, APIResponse]] = []

    def hold_the_first(route: Route) -> None:
        answer = route.fetch()
        if sum(share["answers"] for share in answer.json()["shares"]) == 1:
            late.append((route, answer))
        else:
            route.fulfill(response=answer)

    page.goto(start_page(served.server.url, "--model", "colours").url)
    page.route("**/answers", hold_the_first)
    names = [f"{number}.png" for number in range(3)]
    page.set_input_files("#files", [file(name, RED) for name in names])
    expect(page.locator("#shares")).to_contain_text("Of the last 3 answers")
    ((route, answer),) = late
    route.fulfill(response=answer)
    for name in names:
        card(page, name)
    expect(page.locator("#shares")).to_contain_text("Of the last 3 answers")


def test_a_count_that_began_anew_is_shown(
    page: Page, served: Served, start_page: StartPage
) -> None:
    page.set_input_files("#files", [file("red.png", RED), file("blue.png", BLUE)])
    card(page, "red.png")
    card(page, "blue.png")
    anew = start_page(served.server.url, "--model", "colours")
    page.route(
        "**/answers",
        lambda route: route.fulfill(response=route.fetch(url=f"{anew.url}/answers")),
    )
    page.set_input_files("#files", [file("grey.png", GREY)])
    card(page, "grey.png")
    expect(page.locator("#shares")).to_contain_text("Of the last answer to")
