"""Docstrings of this project are Markdown in Google's sections; Sphinx reads reStructuredText."""

import re
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"(`[^`]+`)")
FIELD = re.compile(r"((?:[a-z]\w*|[A-Z_]{2,})(?:, \w+)*): (?=\S)")  # where a line begins, or a sentence
NEXT_FIELD = re.compile(rf"(?<=[.)\]]) (?={FIELD.pattern})")
BEFORE_NAPOLEON = 100  # which listens at 500 and adds marks of its own


def as_restructured_text(line: str) -> str:
    """A line of Markdown prose: its code spans as literals, and what only reStructuredText reads as a mark escaped."""
    prose_and_code = CODE.split(line)
    escaped = (re.sub(r"([*|\\]|_(?!\w))", r"\\\1", prose) for prose in prose_and_code[::2])
    literals = [f"`{code}`\\ " for code in prose_and_code[1::2]]
    return "".join(prose + literal for prose, literal in zip(escaped, [*literals, ""], strict=True))


def with_fields(lines: list[str]) -> list[str]:
    """Makes lists of the paragraphs of a class that say what its fields are: `name: meaning`, one after the other.

    Such a paragraph begins after an empty line, or after one that ends with a colon, and ends with the next empty line.
    """
    marked: list[str] = []
    among_fields = False
    for before, line in zip(["", *lines], lines, strict=False):
        if not line.strip():
            among_fields = False
        elif not among_fields and FIELD.match(line) and (not before.strip() or before.endswith(":")):
            among_fields = True
            marked.append("")
        marked += map(_as_item, NEXT_FIELD.split(line)[:: FIELD.groups + 1]) if among_fields else [line]
    return marked


def _as_item(text: str) -> str:
    """A field as an item of a list; what goes on an earlier one is indented like it."""
    return FIELD.sub(r"* ``\1``: ", text, count=1) if FIELD.match(text) else f"  {text.strip()}"


def convert(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Converts a docstring in place."""
    converted = [as_restructured_text(line) for line in lines]
    lines[:] = with_fields(converted) if what == "class" else converted


def plain_signature(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """The signature with arrays by their public name."""
    return tuple(text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returned))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the above."""
    app.connect("autodoc-process-docstring", convert, priority=BEFORE_NAPOLEON)
    app.connect("autodoc-process-signature", plain_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
