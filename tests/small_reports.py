"""A small dataset to report on, and what a page must never hold."""

import itertools
from html.parser import HTMLParser
from pathlib import Path

from small_data import example

from r2d2_jax.preparation.writer import write_dataset

IMAGES, FOILS = 10, 6
EVIL = '<b>&"红圆'
# All different, so that no two have the same cosine, of characters that small models know.
CAPTIONS = ["".join(each) for each in itertools.product("大小", "红蓝", "圆方", "大小", "红蓝")]
VOID = ("meta", "img", "br")


def write_report_dataset(folder: Path) -> Path:
    """Validation images with two captions each, one of which holds what HTML must not see, and swapped pairs."""
    texts = iter(CAPTIONS)
    pair = lambda: (next(texts), next(texts))  # noqa: E731
    validation = [example(100 + n, *pair()) for n in range(IMAGES)]
    validation[0] = example(100, EVIL, "大红圆", image_id='"><script>')
    swapped = [example(200 + n, *pair()) for n in range(FOILS)]
    train = [example(n, "红圆", "大方") for n in range(16)]
    write_dataset(folder, {"train": train, "validation": validation, "swapped": swapped})
    return folder


class Page(HTMLParser):
    """A page that was read strictly: raises AssertionError for whatever a self-contained, closed page does not hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images = 0
        self.feed(html)
        self.close()
        assert not self.open
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name, value in attributes:
            assert not name.startswith("on")
            if name == "src":
                assert (value or "").startswith("data:image/")
                self.images += 1
            elif name == "href":
                assert (value or "").startswith("#")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        elif data.strip():
            self.texts.append(data.strip())
