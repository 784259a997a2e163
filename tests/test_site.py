"""The documentation site: what its build refuses, what its search finds, docstrings, and links to source files."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from sphinx.cmd.build import main as build

expect.set_options(timeout=60_000)  # milliseconds, in place of 5 seconds, which a busy machine may take

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"
SOURCE = "class Model:\n    def ask(self) -> None:\n        pass\n\n\ndef load() -> None:\n    pass\n"
# MyST's own, which Sphinx 10 still accepts.
pytestmark = pytest.mark.filterwarnings("ignore:.*MystReferenceResolver.app")


@pytest.fixture(autouse=True)
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of docs/site are found as conf.py finds them."""
    monkeypatch.syspath_prepend(SITE)
    yield
    for name in ("source_pages", "markdown_docstrings", "start_page", "chinese_search"):
        sys.modules.pop(name, None)


def built(folder: Path, page: str) -> tuple[int, Path]:
    """Status and folder of a strict build of one page beside package/code.py, without the theme."""
    for name, text in {
        "conf.py": 'extensions = ["myst_parser", "source_pages", "chinese_search"]\nroot_doc = "page"\n'
        'myst_heading_anchors = 4\nhtml_search_language = "en-zh"\n',
        "page.md": f"# A page\n\n## A part\n\n{page}\n",
        "package/code.py": SOURCE,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return build(["-q", "-W", "--keep-going", str(folder), str(folder / "site")]), folder / "site"


def test_a_link_to_a_source_leads_to_the_line_of_what_it_names(tmp_path: Path) -> None:
    status, site = built(tmp_path, "[`load`](package/code.py) [`Model.ask`](package/code.py) [code](package/code.py)")
    assert status == 0
    page = (site / "page.html").read_text(encoding="utf-8")
    targets = re.findall(r'href="(source/[^"]*)"', page)
    assert targets == [f"source/package/code.py.html{anchor}" for anchor in ("#line-6", "#line-2", "")]
    source = (site / "source/package/code.py.html").read_text(encoding="utf-8")
    assert 'id="line-6"' in source


@pytest.mark.parametrize(
    "link, why",
    [
        ("[code](package/gone.py)", "package/gone.py"),
        ("[`gone`](package/code.py)", "package/code.py does not define gone"),
        ("[part](#no-such-part)", "no-such-part"),
        ("[page](gone.md)", "gone.md"),
        ("[page](page.md#no-such-part)", "no-such-part"),
    ],
)
def test_a_broken_link_fails_the_build(link: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status, _ = built(tmp_path, link)
    assert status != 0
    assert why in capsys.readouterr().err


CHINESE = "两个编码器以很低的代价为数百万候选排序，再用 GCPR 重排。\n\nThe retrievals of both encoders."


def test_a_chinese_word_in_the_middle_of_a_sentence_is_in_the_search_index(tmp_path: Path) -> None:
    status, site = built(tmp_path, CHINESE)
    assert status == 0
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))["terms"]
    assert {"编码", "候选", "重排", "排", "gcpr", "retriev", "encod"} <= terms.keys()
    assert not {"排序再", "两个编码器以很低的代价为数百万候选排序"} & terms.keys()


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("候选", 1),
        ("百万候选排序", 1),
        ("候选 encoder", 1),
        ("GCPR重排", 1),
        ("码", 1),
        ("retrieval", 1),
        ("候补", 0),
        ("排候", 0),
    ],
)
def test_a_browser_splits_questions_as_the_index_is_split(question: str, found: int, searched: Page) -> None:
    searched.goto(f"{searched.url.partition('?')[0]}?q={quote(question)}")
    expect(searched.locator(".search-summary")).not_to_be_empty()
    expect(searched.locator("ul.search li")).to_have_count(found)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The search page of a site with a Chinese sentence, in a browser."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium, which is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SITE)
        status, site = built(tmp_path_factory.mktemp("searched"), CHINESE)
    assert status == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((site / "search.html").as_uri())
        yield page
        browser.close()


def test_prose_of_a_docstring_means_nothing_to_sphinx() -> None:
    from markdown_docstrings import as_restructured_text

    assert as_restructured_text("`a_` is w_j * x_ij, |b| and c_.") == r"``a_``\  is w_j \* x_ij, \|b\| and c\_."


def test_fields_of_a_class_become_a_list() -> None:
    from markdown_docstrings import with_fields

    docstring = [
        "What it is: a thing.",
        "",
        "first: of two. second: the other",
        "    one, in full.",
        "third, fourth: both.",
        "",
        "Note: this is prose.",
    ]
    assert with_fields(docstring) == [
        "What it is: a thing.",
        "",
        "",
        "* ``first``: of two.",
        "* ``second``: the other",
        "  one, in full.",
        "* ``third, fourth``: both.",
        "",
        "Note: this is prose.",
    ]


def test_every_page_is_in_the_navigation() -> None:
    from start_page import NAVIGATION

    named = {page.removesuffix(">").split("<")[-1] for pages in NAVIGATION.values() for page in pages}
    pages = {f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")}
    assert named == pages | {"self", "README.zh", "CONTRIBUTING", "CHANGELOG"}


def test_nothing_is_fetched_by_a_reader() -> None:
    """The theme's own fonts and scripts lie beside the pages; ours add none."""
    for path in SITE.glob("*.py"):
        assert not re.findall(r"https?://", path.read_text(encoding="utf-8")), path.name
