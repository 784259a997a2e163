"""Annotation files, one annotation at a time: lines of text, JSON lines, and JSON arrays."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ijson

from r2d2_jax.data.entries import Place, UnusableRecord
from r2d2_jax.errors import UserError

Parsed = TypeVar("Parsed")

_SURROGATE = re.compile("[\\ud800-\\udfff]")


def lines(path: Path) -> Iterator[tuple[Place, str | UnusableRecord]]:
    """The lines of a UTF-8 file without their ends; blank ones are passed over, others than UTF-8 are unusable.

    Raises:
        UserError: the file cannot be opened.
    """
    with open_annotations(path) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip():
                yield Place(str(path), number), _decoded(raw.rstrip(b"\r\n"))


def parsed_lines(path: Path, parse: Callable[[str], Parsed]) -> Iterator[tuple[Place, Parsed | UnusableRecord]]:
    """The same, with `parse` applied to every line; what it raises as `UnusableRecord` takes the line's place."""
    for place, line in lines(path):
        yield place, line if isinstance(line, UnusableRecord) else _or_unusable(parse, line)


def parsed_array(path: Path, parse: Callable[[Any], Parsed]) -> Iterator[tuple[Place, Parsed | UnusableRecord]]:
    """The entries of a file that is one JSON array, which is never in memory as a whole.

    Where the file breaks off or stops being JSON, the last outcome says so: what follows cannot be told apart.

    Raises:
        UserError: the file cannot be opened.
    """
    number = 0
    with open_annotations(path) as file:
        entries = ijson.items(file, "item", use_float=True)
        while True:
            number += 1
            try:
                entry = next(entries)
            except StopIteration:
                return
            except (ijson.JSONError, UnicodeDecodeError) as error:
                reason = f"invalid JSON ({str(error).strip().splitlines()[0]}); this entry and all after it are lost"
                yield Place(str(path), number), UnusableRecord(reason)
                return
            yield Place(str(path), number), _or_unusable(parse, entry)


def open_annotations(path: Path) -> Any:
    """Opens a file for reading bytes.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"annotation file {path} cannot be read: {error.strerror}; set --annotations to where the "
                        "published files lie, under their published names") from error


def json_object(line: str, *keys: str) -> dict[str, Any]:
    """One JSON object that has all of `keys`.

    Raises:
        UnusableRecord: it is something else, or lacks one.
    """
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UnusableRecord(f"invalid JSON ({error})") from error
    return with_keys(entry, *keys)


def with_keys(entry: Any, *keys: str) -> dict[str, Any]:
    """The entry itself, if it is an object with all of `keys`; raises UnusableRecord otherwise."""
    if not isinstance(entry, dict):
        raise UnusableRecord("not a JSON object")
    absent = [f'"{key}"' for key in keys if key not in entry]
    if absent:
        raise UnusableRecord(f"no {', '.join(absent)}")
    return entry


def text_of(entry: dict[str, Any], key: str) -> str:
    """A text that is not blank, without the blanks around it; raises UnusableRecord otherwise."""
    return as_text(entry[key], f'"{key}"')


def as_text(value: Any, what: str) -> str:
    """The same of a value; `what` names it in the message. Numbers, as image ids often are, become text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UnusableRecord(f"{what} is not a text")
    if not value.strip():
        raise UnusableRecord(f"{what} is empty")
    if not value.isascii() and _SURROGATE.search(value):  # JSON's \ud800 without its other half
        raise UnusableRecord(f"{what} has half a surrogate pair")
    return value.strip()


def columns(line: str, count: int, form: str) -> list[str]:
    """The tab-separated columns of a line.

    Raises:
        UnusableRecord: there are more or fewer than `count`; `form` shows what a line looks like.
    """
    cells = line.split("\t")
    if len(cells) != count:
        raise UnusableRecord(f"{len(cells)} tab-separated columns, expected {count}: {form}")
    return cells


def _decoded(raw: bytes) -> str | UnusableRecord:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return UnusableRecord(f"invalid UTF-8 at byte {error.start} of the line")


def _or_unusable(parse: Callable[[Any], Parsed], raw: Any) -> Parsed | UnusableRecord:
    try:
        return parse(raw)
    except UnusableRecord as error:
        return error
