"""README.md as the start page: the navigation below it, also as index.html, and Chinese pages marked as Chinese."""

import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

START = "README"
# Caption and pages of each part of the navigation; a page that is in none fails the build.
NAVIGATION = {
    "Start": ("Quick start <self>", "中文 <README.zh>"),
    "Data": ("docs/corpora", "docs/check_data"),
    "Training": ("docs/pretraining", "一次训练 <docs/pretraining.zh>", "docs/finetuning"),
    "Method": ("docs/method", "docs/performance"),
    "Using a model": ("docs/evaluation", "docs/published", "docs/report", "docs/search"),
    "On many machines": ("docs/containers", "docs/scaling", "docs/clusters"),
    "Code": ("docs/api", "docs/design", "CONTRIBUTING", "CHANGELOG"),
}


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Appends the tables of contents, which a reader of the repository would see as code."""
    if docname == START:
        for caption, pages in NAVIGATION.items():
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def mark_language(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Tells browsers and screen readers which pages are Chinese."""
    if pagename.endswith(".zh"):
        context["language"] = "zh-CN"


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Copies the start page to index.html, which lies in the same folder, so that its links hold."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(Path(app.outdir, f"{START}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the above."""
    app.connect("source-read", add_navigation)
    app.connect("html-page-context", mark_language)
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
