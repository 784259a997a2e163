"""HTML in small pieces. What comes from data, paths or messages passes through `escaped` on its way into a page."""

import html
from collections.abc import Iterable, Sequence


def escaped(text: object) -> str:
    """A text that HTML shows as it is, also within quotation marks."""
    return html.escape(str(text), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(kind)}>{escaped(text)}</p>"


def section(identity: str, title: str, *parts: str) -> str:
    """A section with its heading, of parts that are HTML already; "" if all of them are empty."""
    inner = "\n".join(part for part in parts if part)
    return f'<section id="{escaped(identity)}">\n<h2>{escaped(title)}</h2>\n{inner}\n</section>' if inner else ""


def table(head: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    """A table of plain texts, in a box of its own that scrolls where the page is narrow.

    The first cell of a row names it.
    """
    top = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{escaped(first)}</th>' + "".join(f"<td>{escaped(cell)}</td>" for cell in cells) + "</tr>"
        for first, *cells in rows
    ]
    heading = f"<thead><tr>{top}</tr></thead>\n" if any(str(cell) for cell in head) else ""
    return (
        f'<div class="wide"><table{_class(kind)}>\n{heading}<tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"
    )


def image(uri: str, alternative: str, kind: str = "") -> str:
    """A picture; `alternative` is the text in its place."""
    return f'<img{_class(kind)} src="{uri}" alt="{escaped(alternative)}">'


def chinese(text: str, kind: str = "") -> str:
    """A text from the data, which is Chinese as a rule, so that browsers choose the right forms of characters."""
    return f'<span lang="zh-Hans"{_class(kind)}>{escaped(text)}</span>'


def preformatted(text: str) -> str:
    """A text whose line breaks and spaces stay."""
    return f"<pre>{escaped(text)}</pre>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
