"""docs/check_data.md lists every key of the JSON file and every finding, and nothing else."""

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from parsing import parsed

from r2d2_jax.preparation.checks import findings
from r2d2_jax.preparation.checks.report import CheckSettings, Limits, Range, Report

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "check_data.md").read_text(encoding="utf-8")
EXPLAINED_ELSEWHERE = (Range, Limits, CheckSettings)  # as a whole, above the table of keys or by the flags


def documented(title: str) -> list[list[str]]:
    """What stands in backticks in the first cell of every row of a section's tables."""
    section = DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return [re.findall("`([^`]+)`", cell) for cell in cells]


def documented_keys() -> list[str]:
    """Paths in full: a key with a dot before it belongs to a split, or is a neighbour of the first one of its row."""
    keys = []
    for first, *others in documented("The JSON file"):
        path = f"splits.NAME{first}" if first.startswith(".") else first
        keys += [path, *(path.rpartition(".")[0] + other for other in others)]
    return keys


def keys_of(kind: type, path: str = "") -> Iterator[str]:
    """Paths of all leaves of a dataclass of the report."""
    for name, hint in typing.get_type_hints(kind).items():
        (inner,) = [one for one in nested(hint) if one is not types.NoneType] or [None]
        name = f"{name}.NAME" if typing.get_origin(hint) is dict and inner else name
        yield from keys_of(inner, f"{path}{name}.") if inner else [f"{path}{name}"]


def nested(hint: typing.Any) -> list[type]:
    """The dataclass within a type such as X, X | None, list[X] or dict[str, X], unless it is explained elsewhere."""
    return [
        one
        for one in (hint, *typing.get_args(hint))
        if dataclasses.is_dataclass(one) and one not in EXPLAINED_ELSEWHERE
    ]


def test_every_key_is_documented_once() -> None:
    assert sorted(documented_keys()) == sorted(keys_of(Report))


def said(node: ast.expr, helpers: dict[str, ast.expr]) -> str:
    """The text of an expression, with an ellipsis for whatever is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part, helpers) for part in node.values)
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue):
        return said(node.value, helpers)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in helpers:
        return said(helpers[node.func.id], helpers)
    return "…"


def messages() -> set[str]:
    """Every finding that the code can yield, without the split's name before it."""
    tree = parsed(inspect.getsource(findings))
    # Functions that put a part of a message together; all but `_of`, which is a figure with its share.
    helpers = {
        function.name: statement.value
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for statement in function.body
        if isinstance(statement, ast.Return)
        if isinstance(statement.value, ast.JoinedStr) and function.name != "_of"
    }
    yielded = [node.value for node in ast.walk(tree) if isinstance(node, ast.Yield) and node.value]
    return {said(value, helpers).removeprefix("…: ") for value in yielded}


def test_every_finding_is_documented() -> None:
    assert {message for row in documented("Errors and warnings") for message in row} == messages()
    assert len(messages()) > 15
