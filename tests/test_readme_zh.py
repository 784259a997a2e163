"""README.zh.md says what README.md says: section by section the same code, figures, links and shape."""

import re
from collections import Counter
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SWITCHES = {"README.md": "English | [中文](README.zh.md)", "README.zh.md": "[English](README.md) | 中文"}
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
HAN = r"[\u4e00-\u9fff]"


def sections(file: str) -> list[tuple[str, str]]:
    """Title and body of each section, and first what stands above them, without the switch between languages."""
    text = (ROOT / file).read_text(encoding="utf-8").replace(SWITCHES[file] + "\n", "", 1)
    blank = FENCED.sub(lambda code: re.sub(r"^#", " ", code[0], flags=re.MULTILINE), text)  # a comment is no heading
    starts = [0, *(heading.start() for heading in re.finditer(r"^## ", blank, re.MULTILINE)), len(text)]
    bodies = [text[start:end] for start, end in zip(starts, starts[1:], strict=False)]
    return [(body.partition("\n")[0].lstrip("# "), body.partition("\n")[2]) for body in bodies]


def pairs() -> list[tuple[str, str, str]]:
    """English title, English body and Chinese body of each section."""
    both = zip(sections("README.md"), sections("README.zh.md"), strict=False)
    return [(title, english, chinese) for (title, english), (_, chinese) in both]


def code_lines(body: str) -> list[str]:
    """Lines of the fenced blocks, without comments."""
    lines = [line for block in FENCED.findall(body) for line in block.splitlines()]
    return [re.sub(r"(^|\s+)#\s.*", "", line) for line in lines]


def code_spans(body: str) -> list[str]:
    return [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", body))]


def links(body: str) -> list[str]:
    return [target for _, target in LINK.findall(prose(body, keep_links=True))]


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


def test_a_switch_between_languages_is_below_the_title() -> None:
    for file, switch in SWITCHES.items():
        assert (ROOT / file).read_text(encoding="utf-8").startswith(f"# r2d2_jax\n\n{switch}\n\n"), file


def test_there_are_as_many_sections() -> None:
    english, chinese = ([title for title, _ in sections(file)] for file in SWITCHES)
    assert len(english) == len(chinese), f"README.md has {english}, README.zh.md has {chinese}"


def test_code_blocks_are_the_same() -> None:
    for title, english, chinese in pairs():
        lines = (code_lines(english), code_lines(chinese))
        difference = "\n".join(unified_diff(*lines, "README.md", "README.zh.md", lineterm="", n=0))
        assert not difference, f"{title}:\n{difference}"


@pytest.mark.parametrize("found", [code_spans, numbers, links, shape])
def test_each_section_has_the_same(found: Callable[[str], list[str]]) -> None:
    problems = []
    for title, *bodies in pairs():
        english, chinese = (Counter(found(body)) for body in bodies)
        for file, lacking in (("README.zh.md", english - chinese), ("README.md", chinese - english)):
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
def test_chinese_is_set_as_chinese(wrong: str, why: str) -> None:
    for title, body in sections("README.zh.md"):
        text = prose(body)
        found = [text[max(0, place.start() - 10) : place.end() + 10] for place in re.finditer(wrong, text)]
        assert not found, f"{title}: {why}: {found}"
