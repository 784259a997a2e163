"""The names of classes, and the folders that hold their images."""

import collections
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import FIRST_NAMES, UserError
from r2d2_jax.preparation.corpora.formats.fields import as_text, columns, readable
from r2d2_jax.preparation.corpora.formats.lines import lines


@dataclass(frozen=True)
class ClassNames:
    """The class names by number, and for each a key: what its folder may be called, besides its name or number."""

    file: Path
    names: tuple[str, ...]
    keys: tuple[str, ...]

    def labels(self, root: Path, folders: Collection[str]) -> dict[str, int]:
        """The class of each folder in `root`; all folders are named by key, by name, by number, or 000, 001, ...

        Raises:
            UserError: a class has no folder, or a folder no class.
        """
        numbers = range(len(self.names))
        ways = [
            dict(zip(words, numbers, strict=True))
            for words in (self.keys, self.names, [str(n) for n in numbers], [f"{n:03d}" for n in numbers])
        ]
        way = max(ways, key=lambda labels: len(labels.keys() & set(folders)))
        missing, unnamed = sorted(way.keys() - set(folders)), sorted(set(folders) - way.keys())
        if missing or unnamed:
            raise UserError(
                f"the folders in {root} are not the {len(self.names)} classes of {self.file}: "
                + "; ".join(_listed("no folder for", missing) + _listed("no class for", unnamed))
            )
        return way


def read_class_names(path: Path) -> ClassNames:
    """Reads label_cn.txt (a name a line), a .tsv (FOLDER<tab>NAME a line), or a .json (a list of objects).

    Raises:
        UserError: a line cannot be read, a name occurs twice, or there is none.
    """
    rows = list(_json_rows(path) if path.suffix == ".json" else _line_rows(path))
    names, keys = tuple(name for _, name in rows), tuple(key or name for key, name in rows)
    for what, words in (("class name", names), ("folder", keys)):
        twice = sorted(word for word, count in collections.Counter(words).items() if count > 1)
        if twice:
            raise UserError(
                f"{what} {', '.join(twice[:FIRST_NAMES])} is in {path} more than once; give each class its own"
            )
    if not names:
        raise UserError(f"{path} names no class; expected one a line, or the JSON list that docs/corpora.md shows")
    return ClassNames(path, names, keys)


def _line_rows(path: Path) -> Iterator[tuple[str, str]]:
    for place, line in lines(path):
        try:
            row = _row(line, tabbed=path.suffix == ".tsv")
        except UnusableRecord as error:
            raise UserError(f"{place}: {error}; expected the name of a class") from error
        yield row


def _row(line: str | UnusableRecord, *, tabbed: bool) -> tuple[str, str]:
    if isinstance(line, UnusableRecord):
        raise line
    key, name = columns(line, 2, "FOLDER<tab>NAME") if tabbed else ("", line)
    return key.strip(), as_text(name, "the class's name")


def _json_rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = sorted(map(_json_row, entries))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, UnusableRecord) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected a list like "
            '[{"id": 0, "name": "daisy", "name_zh": "雏菊"}]'
        ) from error
    if [number for number, *_ in rows] != list(range(len(rows))):
        raise UserError(f"the ids in {path} are not 0 to {len(rows) - 1}, each once; number the classes so")
    yield from ((key, name) for _, key, name in rows)


def _json_row(entry: dict[str, Any]) -> tuple[int, str, str]:
    key = as_text(entry["name"], '"name"')
    return entry["id"], key, as_text(entry.get("name_zh", key), '"name_zh"')


def _listed(what: str, words: list[str]) -> list[str]:
    if not words:
        return []
    more = f" and {len(words) - FIRST_NAMES} more" if len(words) > FIRST_NAMES else ""
    return [f"{what} {', '.join(map(readable, words[:FIRST_NAMES]))}{more}"]
