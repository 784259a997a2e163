"""Annotation files, one annotation at a time: lines of text, JSON lines, and JSON arrays."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ijson

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.paths import LFS_POINTER
from r2d2_jax.preparation.examples import Place

Parsed = TypeVar("Parsed")

_READ_ERRORS = (OSError, EOFError, zlib.error)  # the last two come from a .gz that is cut short or broken


def lines(path: Path) -> Iterator[tuple[Place, str | UnusableRecord]]:
    """The lines of a UTF-8 file without line ends or blank lines; a line that is no UTF-8 is unusable.

    Raises:
        UserError: the file cannot be opened, or is of another kind as a whole.
    """
    number = 0
    with open_annotations(path) as file:
        try:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    _refuse_other_kinds(path, raw)
                line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if line.strip():
                    yield Place(str(path), number), _decoded(line.rstrip(b"\r\n"))
        except _READ_ERRORS as error:
            reason = f"cannot be read further ({first_line(error)}); this line and all after it are lost"
            yield Place(str(path), number + 1), UnusableRecord(reason)


def parsed_lines(path: Path, parse: Callable[[str], Parsed]) -> Iterator[tuple[Place, Parsed | UnusableRecord]]:
    """Parses the lines of `lines`; an UnusableRecord that `parse` raises takes the place of the result."""
    for place, line in lines(path):
        yield place, line if isinstance(line, UnusableRecord) else _or_unusable(parse, line)


def parsed_array(
    path: Path, parse: Callable[[Any], Parsed], where: str = "item"
) -> Iterator[tuple[Place, Parsed | UnusableRecord]]:
    """The parsed entries of a JSON array, one in memory at a time.

    Where the file is cut off or stops being JSON, the last outcome says so: the entries after it are lost.

    Args:
        path: the file.
        parse: parses an entry; an UnusableRecord that it raises takes the place of the result.
        where: "item" if the file is the array, "images.item" if the array is under the key "images".

    Raises:
        UserError: the file cannot be opened.
    """
    number = 0
    with open_annotations(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        entries = ijson.items(file, where, use_float=True)
        while True:
            number += 1
            try:
                entry = next(entries)
            except StopIteration:
                return
            except (ijson.JSONError, UnicodeDecodeError, *_READ_ERRORS) as error:
                reason = f"invalid JSON ({first_line(error)}); this entry and all after it are lost"
                yield Place(str(path), number), UnusableRecord(reason)
                return
            yield Place(str(path), number), _or_unusable(parse, entry)


def begins_with(path: Path, mark: bytes) -> bool:
    """Whether a file begins with these bytes, blanks aside."""
    with open_annotations(path) as file:
        try:
            return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(mark)
        except _READ_ERRORS:
            return False  # `lines` will report it


def refuse_array(path: Path, expected: str) -> None:
    """Raises UserError if a file of JSON lines is one JSON array; `expected` shows a line."""
    if begins_with(path, b"["):
        raise UserError(
            f"{path} is a JSON array; expected one object a line, like {expected}. Write each of its "
            "entries on a line of its own"
        )


def open_annotations(path: Path) -> Any:
    """Opens a file to read its bytes; decompresses it if its name ends in .gz.

    Raises:
        UserError: it does not exist or cannot be opened.
    """
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(
            f"annotation file {path} cannot be read: {error.strerror}; set --annotations to where the "
            "published files lie, under their published names"
        ) from error


_OTHER_KINDS = {
    codecs.BOM_UTF16_LE: "UTF-16; save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed with gzip; let its name end in .gz",
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or save it as text",
    b"PAR1": "Parquet; choose a --corpus that reads it",
    LFS_POINTER: "a Git LFS pointer; run `git lfs pull`",
}


def _refuse_other_kinds(path: Path, first: bytes) -> None:
    for start, kind in _OTHER_KINDS.items():
        if first.startswith(start):
            raise UserError(f"{path} is no text in UTF-8 but {kind}")


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
