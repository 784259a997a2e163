"""Chinese pages say what the English ones say: section by section the same code, figures, links and shape."""

import re
from collections import Counter
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each page in English, and in Chinese beside it.
PAGES = {"README.md": "README.zh.md", "docs/pretraining.md": "docs/pretraining.zh.md"}
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
HAN = r"[\u4e00-\u9fff]"


def switch(file: str) -> str:
    """The line below the title, from which a reader goes to the other language."""
    english, chinese = next(pair for pair in PAGES.items() if file in pair)
    return f"English | [中文]({Path(chinese).name})" if file == english else f"[English]({Path(english).name}) | 中文"


def sections(file: str) -> list[tuple[str, str]]:
    """Title and body of each section, and first what stands above them, without the switch between languages."""
    text = (ROOT / file).read_text(encoding="utf-8").replace(switch(file) + "\n", "", 1)
    blank = FENCED.sub(lambda code: re.sub(r"^#", " ", code[0], flags=re.MULTILINE), text)  # a comment is no heading
    starts = [0, *(heading.start() for heading in re.finditer(r"^## ", blank, re.MULTILINE)), len(text)]
    bodies = [text[start:end] for start, end in zip(starts, starts[1:], strict=False)]
    return [(body.partition("\n")[0].lstrip("# "), body.partition("\n")[2]) for body in bodies]


def both(page: str) -> list[tuple[str, str, str]]:
    """English title, English body and Chinese body of each section."""
    pairs = zip(sections(page), sections(PAGES[page]), strict=False)
    return [(title, english, chinese) for (title, english), (_, chinese) in pairs]


def code_lines(body: str) -> list[str]:
    """Lines of the fenced blocks, without comments."""
    lines = [line for block in FENCED.findall(body) for line in block.splitlines()]
    return [re.sub(r"(^|\s+)#\s.*", "", line) for line in lines]


def code_spans(body: str) -> list[str]:
    return [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", body))]


def links(body: str) -> list[str]:
    """Targets, of Chinese pages as if they were the English ones."""
    return [target.replace(".zh.md", ".md") for _, target in LINK.findall(prose(body, keep_links=True))]


def numbers(body: str) -> list[str]:
    """Digits with their commas and point: 1,024 and 2.3 are one number each. Numbers in words are words in both."""
    return re.findall(r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?", prose(body))


def shape(body: str) -> list[str]:
    """A word for each paragraph, item of a list and row of a table."""
    blocks = re.split(r"\n{2,}|\n(?=- |\|)", prose(body).strip())
    return [kind(block) for block in blocks if block.strip()]


def kind(block: str) -> str:
    if block.startswith("|"):
        return f"row of {block.count('|') - 1} cells"
    return "item" if block.startswith("- ") else "paragraph"


def prose(body: str, keep_links: bool = False) -> str:
    """What is left without code, and without the targets of links."""
    text = SPAN.sub("`code`", FENCED.sub("", body))
    return text if keep_links else LINK.sub(r"\1", text)


def test_every_chinese_page_is_compared() -> None:
    assert {str(path.relative_to(ROOT)) for folder in ("", "docs") for path in (ROOT / folder).glob("*.zh.md")} == set(
        PAGES.values()
    )


@pytest.mark.parametrize("file", [*PAGES, *PAGES.values()])
def test_a_switch_between_languages_is_below_the_title(file: str) -> None:
    title, empty, line, after, *_ = (ROOT / file).read_text(encoding="utf-8").split("\n")
    assert title.startswith("# ")
    assert (empty, line, after) == ("", switch(file), "")


@pytest.mark.parametrize("page", PAGES)
def test_there_are_as_many_sections(page: str) -> None:
    english, chinese = ([title for title, _ in sections(file)] for file in (page, PAGES[page]))
    assert len(english) == len(chinese), f"{page} has {english}, {PAGES[page]} has {chinese}"


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_are_the_same(page: str) -> None:
    for title, english, chinese in both(page):
        lines = (code_lines(english), code_lines(chinese))
        difference = "\n".join(unified_diff(*lines, page, PAGES[page], lineterm="", n=0))
        assert not difference, f"{title}:\n{difference}"


@pytest.mark.parametrize("found", [code_spans, numbers, links, shape])
@pytest.mark.parametrize("page", PAGES)
def test_each_section_has_the_same(page: str, found: Callable[[str], list[str]]) -> None:
    problems = []
    for title, *bodies in both(page):
        english, chinese = (Counter(found(body)) for body in bodies)
        for file, lacking in ((PAGES[page], english - chinese), (page, chinese - english)):
            if lacking:
                problems.append(f"{title}: {file} lacks {sorted(lacking.elements())}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "wrong, why",
    [
        (rf"{HAN}[,;:!?()]|[,;:!?()]{HAN}", "Chinese text has Chinese punctuation"),
        (rf"{HAN}[\w`](?<!{HAN})|[\w`%](?<!{HAN}){HAN}", "a space belongs between Chinese and Latin"),
        (rf"{HAN}\n *{HAN}", "a line that breaks between two characters is shown with a space there"),
    ],
)
@pytest.mark.parametrize("page", PAGES.values())
def test_chinese_is_set_as_chinese(page: str, wrong: str, why: str) -> None:
    for title, body in sections(page):
        text = prose(body)
        found = [text[max(0, place.start() - 10) : place.end() + 10] for place in re.finditer(wrong, text)]
        assert not found, f"{title}: {why}: {found}"
