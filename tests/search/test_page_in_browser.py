"""The page in a browser, on a desk and on a telephone: what a person sees; nothing is asked of another host."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from small_pages import HOST, served, small_desk
from small_photos import photographs

expect.set_options(timeout=60_000)  # milliseconds, in place of 5 seconds, which a busy machine may take

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is not installed")
WIDTHS = {"desk": (1280, 800), "telephone": (390, 844)}
PHOTOS = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("browser") / "photos", PHOTOS)


@pytest.fixture(scope="module")
def url(photos: Path) -> Iterator[str]:
    desk = small_desk(photos, photos.parent / "index")
    desk.warm_up()
    with served(desk) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Browser, url: str) -> Iterator[Page]:
    """The page of an English browser, that must ask no other host, scroll sideways at no time, and raise nothing."""
    yield from opened(browser, url, *WIDTHS[request.param])


def opened(browser: Browser, url: str, width: int, height: int, locale: str = "en-GB") -> Iterator[Page]:
    with browser.new_context(viewport={"width": width, "height": height}, locale=locale) as context:
        page = context.new_page()
        hosts: set[str | None] = set()
        wrong: list[str] = []
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.set_default_timeout(60_000)
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert hosts <= {HOST, None}  # None: of blob:
        assert wrong == []


def ask(page: Page, query: str) -> None:
    page.fill("#query", query)
    page.press("#query", "Enter")


def names(page: Page, ranking: str) -> list[str | None]:
    return [hit.get_attribute("title") for hit in page.locator(f"#{ranking} .hit").all()]


def test_a_sentence_from_the_box_to_the_heat_map(page: Page) -> None:
    ask(page, "大红圆在小蓝方")
    expect(page.locator("#match .hit")).to_have_count(12)
    expect(page.locator("#cosine .hit")).to_have_count(12)
    expect(page.locator("#cosine .stage")).to_contain_text("by cosine")
    expect(page.locator("#match .stage")).to_contain_text("16 by match + cosine")
    page.click("#more")
    expect(page.locator("#match .hit")).to_have_count(PHOTOS)
    assert sorted(names(page, "match")) == sorted(names(page, "cosine"))
    slider = page.locator("#candidates")
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator("#match .stage")).to_contain_text("20 by match + cosine")
    expect(page.locator("#chosen")).to_have_text("32")
    slider.press("Home")
    expect(page.locator("#chosen")).to_have_text("none")
    expect(page.locator("#match .hit")).to_have_count(0)
    page.locator("#cosine .hit").nth(1).click()
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#name")).to_have_text(names(page, "cosine")[1] or "")
    entity = page.locator("#entities .choice").first
    expect(entity).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#picture canvas")).to_be_visible()
    image, heat = page.locator("#picture .view img").bounding_box(), page.locator("#picture canvas").bounding_box()
    assert image is not None
    assert heat is not None
    assert heat["x"] >= image["x"] - 1
    assert heat["x"] + heat["width"] <= image["x"] + image["width"] + 1
    page.click("[data-reading=occlusion]")
    expect(page.locator("#heat-note")).not_to_contain_text("looking")
    page.click("#picture .close")
    expect(page.locator("#picture")).to_be_hidden()


def test_a_picture_then_one_like_it_then_words_again(page: Page, photos: Path) -> None:
    page.set_input_files("#file", photos / "02.png")
    expect(page.locator("#cosine .hit")).to_have_count(12)
    assert names(page, "cosine")[0] == "02.png"
    expect(page.locator("#sample-name")).to_have_text("like 02.png")
    expect(page.locator("#match .stage")).to_contain_text("Pictures are not re-ranked")
    page.locator("#cosine .hit").nth(3).click()
    expect(page.locator("#heat")).to_be_hidden()
    chosen = page.locator("#name").inner_text()
    page.click("#alike")
    expect(page.locator("#sample-name")).to_have_text(f"like {chosen}")
    expect(page.locator("#cosine .hit").first).to_have_attribute("title", chosen)
    page.click("#sample button")
    expect(page.locator("#query")).to_be_visible()
    expect(page.locator("#rankings")).to_be_hidden()


def test_a_picture_that_is_dropped_on_the_page(page: Page, photos: Path) -> None:
    content = base64.b64encode((photos / "below" / "05.png").read_bytes()).decode()
    dropped = page.evaluate_handle(
        """(content) => {
            const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "mine.png", { type: "image/png" }));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("main", "drop", {"dataTransfer": dropped})
    expect(page.locator("#sample-name")).to_have_text("like mine.png")
    expect(page.locator("#cosine .hit").first).to_have_attribute("title", "below/05.png")
    assert page.url.endswith("/")  # the browser has not gone to the file


def test_what_is_wrong_is_one_message(page: Page, tmp_path: Path) -> None:
    ask(page, "  ")
    expect(page.locator("#error")).to_have_text(
        "the query '  ' says nothing; expected a sentence, such as 一只狗在草地上"
    )
    (tmp_path / "text.jpg").write_text("<b>text</b>")
    page.set_input_files("#file", tmp_path / "text.jpg")
    expect(page.locator("#error")).to_contain_text("image of 11 bytes: not an image")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(31 * 2**20)
    page.set_input_files("#file", tmp_path / "large.jpg")
    expect(page.locator("#error")).to_contain_text("The picture has 31 MB; it may have 30 MB at most")
    page.set_input_files("#file", tmp_path / "text.jpg")
    page.click("#sample button")
    ask(page, "红" * 9)
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#notes")).to_have_text("the query has 9 tokens, of which the model reads the first 5")


def test_the_language_is_the_browsers_until_it_is_chosen(browser: Browser, url: str) -> None:
    for page in opened(browser, url, *WIDTHS["desk"], locale="zh-CN"):
        expect(page.locator("[type=submit]")).to_have_text("搜索")
        assert page.locator("html").get_attribute("lang") == "zh-Hans"
        ask(page, "红圆")
        expect(page.locator("#match .hit")).to_have_count(12)
        expect(page.locator("#match .stage")).to_contain_text("匹配概率")
        page.click("#language")
        expect(page.locator("#match .stage")).to_contain_text("by match + cosine")
        page.reload()
        expect(page.locator("[type=submit]")).to_have_text("Search")


def test_one_ranking_without_cross_encoders(browser: Browser, photos: Path, tmp_path: Path) -> None:
    with served(small_desk(photos, tmp_path / "index", cross_layers=0)) as url:
        for page in opened(browser, url, *WIDTHS["telephone"]):
            expect(page.locator("#notes")).to_contain_text("no cross encoders (PRD2)")
            expect(page.locator("#start")).to_have_text("All pictures are ranked by how near they are to your words.")
            ask(page, "红圆")
            expect(page.locator("#cosine .hit")).to_have_count(12)
            expect(page.locator("#match")).to_be_hidden()
            expect(page.locator("#slider")).to_be_hidden()
            page.locator("#cosine .hit").first.click()
            expect(page.locator("#heat")).to_be_hidden()


def test_a_server_that_has_ended(browser: Browser, photos: Path) -> None:
    with served(small_desk(photos, photos.parent / "index")) as url:
        pages = opened(browser, url, *WIDTHS["desk"])
        page = next(pages)
    ask(page, "红圆")
    expect(page.locator("#error")).to_have_text("The server does not answer. Is it still running?")
    assert next(pages, None) is None
