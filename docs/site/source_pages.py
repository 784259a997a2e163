"""Links from pages to source files: each file that is linked becomes a highlighted page of the site.

`[code](../r2d2_jax/file.py)` leads to the file, and a link whose text begins with the name of a function, class or
method in backticks to the line where it is defined. A file or a name that does not exist fails the build.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

FOLDER, LINKED, NOTEBOOK = "source", "linked_sources", ".ipynb"
BEFORE_DOWNLOADS = 400  # Sphinx collects the files to download at 500


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Replaces downloads, which the parser makes of links to files that are no pages, by links to source pages."""
    docname = app.env.docname
    for download in list(doctree.findall(addnodes.download_reference)):
        if download["reftarget"].endswith(NOTEBOOK):  # is better opened than read
            continue
        _, file = app.env.relfn2path(download["reftarget"], docname)
        path = Path(file).resolve().relative_to(Path(app.srcdir).resolve()).as_posix()
        if not Path(app.srcdir, path).is_file():
            logger.warning("%s is linked, and is no file", path, location=download)
            continue
        app.env.metadata[docname].setdefault(LINKED, set()).add(path)
        target = app.builder.get_relative_uri(docname, f"{FOLDER}/{path}")
        anchor = line_anchor(Path(app.srcdir, path), download)
        download.replace_self(nodes.reference("", "", *download.children, refuri=target + anchor, internal=True))


def line_anchor(path: Path, link: nodes.Element) -> str:
    """#line-N of what the link names first in code; "" where that is no Python name."""
    name = next((code.astext() for code in link.findall(nodes.literal)), "")
    if path.suffix != ".py" or not name.replace(".", "").isidentifier() or name.endswith(".py"):
        return ""
    lines = definitions(ast.parse(path.read_text(encoding="utf-8")))
    if name not in lines:
        logger.warning("%s does not define %s", path, name, location=link)
        return ""
    return f"#line-{lines[name]}"


def definitions(tree: ast.Module) -> dict[str, int]:
    """Line of each function and class, and of each method as Class.method."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}": method.lineno for method in methods}
            found |= {method.name: method.lineno for method in methods if method.name not in found}
    return found


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, context and template of a page for each file that is linked."""
    linked = set().union(*(facts.get(LINKED, set()) for facts in app.env.metadata.values()))
    formatter = HtmlFormatter(lineanchors="line", wrapcode=True)
    for path in sorted(linked):
        text = Path(app.srcdir, path).read_text(encoding="utf-8")
        code = highlight(text, get_lexer_for_filename(path), formatter)
        yield f"{FOLDER}/{path}", {"title": path, "body": f"<h1>{path}</h1>\n{code}"}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the above."""
    app.connect("doctree-read", link_sources, priority=BEFORE_DOWNLOADS)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
