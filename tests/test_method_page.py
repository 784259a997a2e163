"""docs/method.md names functions that exist where it says, and files that are there."""

import ast
import re
from pathlib import Path

from parsing import parsed

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "method.md").read_text(encoding="utf-8")


def defined(path: Path) -> set[str]:
    """Names of all functions, methods and classes of a file, methods also with their class."""
    found = set()
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def test_every_function_that_an_equation_names_is_in_the_file_beside_it() -> None:
    named = [
        (name, path)
        for text, path in re.findall(r"\[([^\]\n]+)\]\((\S+\.py)\)", PAGE)
        for name in re.findall(r"`([\w.]+)`", text)
    ]
    assert len(named) > 15
    assert [(name, path) for name, path in named if name not in defined(DOCS / path)] == []


def test_every_file_that_is_named_is_there() -> None:
    links = [path for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE) if not (DOCS / path).is_file()]
    code = re.findall(r"`((?:configs|launch|benchmarks|docs)/[\w/]+\.(?:py|md))", PAGE)
    assert links == []
    assert [path for path in code if not (DOCS.parent / path).is_file()] == []
