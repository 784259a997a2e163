"""All annotations of a corpus in one file on disk, numbered split by split.

A catalog fixes the order of a corpus before its images are read, so it does not matter which process reads which
entries. It is an SQLite database: it joins the captions of an image that lie far apart in the annotation files, and
holds none of them in memory.
"""

import functools
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.examples import Annotation, Place

_TABLES = """
CREATE TABLE file (number INTEGER PRIMARY KEY, path TEXT UNIQUE);
CREATE TABLE size (position INTEGER PRIMARY KEY, split TEXT, entries INTEGER);
CREATE TABLE entry (split TEXT, number INTEGER, image TEXT, image_id TEXT, label INTEGER, file INTEGER, line INTEGER,
    grouped TEXT, PRIMARY KEY (split, number)) WITHOUT ROWID;
CREATE TABLE caption (split TEXT, number INTEGER, position INTEGER, text TEXT, PRIMARY KEY (split, number, position))
    WITHOUT ROWID;
CREATE TABLE text_id (position INTEGER PRIMARY KEY, id TEXT);
CREATE UNIQUE INDEX entry_grouped ON entry (split, grouped) WHERE grouped IS NOT NULL;
CREATE TABLE seen (split TEXT, name TEXT, file INTEGER, line INTEGER, PRIMARY KEY (split, name)) WITHOUT ROWID;
CREATE TABLE blob (name TEXT PRIMARY KEY, file INTEGER, line INTEGER, position INTEGER, length INTEGER) WITHOUT ROWID;
CREATE TABLE remark (number INTEGER PRIMARY KEY, line TEXT);
CREATE TABLE skipped (number INTEGER PRIMARY KEY, split TEXT, file INTEGER, line INTEGER, reason TEXT);
"""
_OF_ENTRY = "WHERE caption.split = entry.split AND caption.number = entry.number ORDER BY position"
_TEXT_IDS = f"""(SELECT json_group_array(id) FROM (SELECT IFNULL(id, '') AS id
    FROM caption LEFT JOIN text_id USING (position) {_OF_ENTRY}))"""
_ENTRIES = f"""
SELECT image, image_id, label, path, line,
    (SELECT json_group_array(text) FROM (SELECT text FROM caption {_OF_ENTRY})), {{text_ids}}
FROM entry JOIN file ON file = file.number
WHERE split = ? AND entry.number >= ? AND entry.number < ? ORDER BY entry.number
"""
_ADD = "INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_GROUP = "SELECT entry.number, path, line FROM entry JOIN file ON file = file.number WHERE split = ? AND grouped = ?"
_SEEN_PLACE = "SELECT path, line FROM seen JOIN file ON file = file.number WHERE split = ? AND name = ?"
_CACHE_KIB = 8 * 1024  # while the catalog is written; our decision
_BLOB_PLACE = "SELECT path, line FROM blob JOIN file ON file = file.number WHERE name = ?"


@dataclass(frozen=True)
class Blob:
    """Where the bytes of an image lie within a larger file."""

    place: Place
    position: int
    length: int


class Catalog:
    """The annotations of a corpus. One process writes it; once it is closed, any number of processes read it.

    A pickled copy opens the file anew: it holds only the path.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Opens a catalog for reading, or makes a new one."""
        self.path, self._created = path, create
        self._sizes, self._files, self._captions = dict[str, int](), dict[str, int](), 0
        if create:
            self._database = sqlite3.connect(path)
            # No journal: an interrupted catalog is deleted, not repaired.
            self._database.executescript(
                f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KIB}; {_TABLES}"
            )
        else:
            self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)

    def add(self, place: Place, split: str, annotation: Annotation, *, grouped: bool) -> None:
        """Gives an annotation the next number of its split.

        Args:
            place: its place in the annotation files.
            split: the split it belongs to.
            annotation: the annotation.
            grouped: whether its captions join those of an earlier annotation of the same image.

        Raises:
            UnusableRecord: its `unique` has been annotated before.
        """
        file = self._file_number(place.file)
        grouped_once = grouped and annotation.unique == annotation.image  # one index serves both
        if annotation.unique and not grouped_once:
            self._see(split, annotation.unique, file, place)
        number = self._sizes.get(split, 0)
        row = (
            split,
            number,
            annotation.image,
            annotation.image_id or annotation.image,
            annotation.label,
            file,
            place.line,
            annotation.image if grouped else None,
        )
        if self._database.execute(_ADD, row).rowcount:
            self._sizes[split] = number + 1
        else:
            number, *first = self._database.execute(_GROUP, (split, annotation.image)).fetchone()
            if grouped_once:
                raise UnusableRecord(f"{annotation.unique} has been annotated before, in {Place(*first)}")
        self._add_captions(split, number, annotation)

    def add_blob(self, name: str, blob: Blob) -> None:
        """Notes where an image's bytes lie; raises UnusableRecord if there is an image of that name already."""
        row = (name, self._file_number(blob.place.file), blob.place.line, blob.position, blob.length)
        if not self._database.execute("INSERT OR IGNORE INTO blob VALUES (?, ?, ?, ?, ?)", row).rowcount:
            first = Place(*self._database.execute(_BLOB_PLACE, (name,)).fetchone())
            raise UnusableRecord(f"image {name} has been given before, in {first}")

    def skip(self, place: Place, split: str, reason: UnusableRecord) -> None:
        """Notes an unusable line; `split` is "" if it names none."""
        row = (split, self._file_number(place.file), place.line, str(reason))
        self._database.execute("INSERT INTO skipped (split, file, line, reason) VALUES (?, ?, ?, ?)", row)

    def remark(self, line: str) -> None:
        """Notes a line for the report, besides the skipped entries."""
        self._database.execute("INSERT INTO remark (line) VALUES (?)", (line,))

    def close(self) -> None:
        """Writes what is not yet written, and closes the file."""
        if self._created:
            self._database.executemany("INSERT INTO size (split, entries) VALUES (?, ?)", self._sizes.items())
        self._database.commit()
        self._database.close()

    def sizes(self) -> dict[str, int]:
        """Split name -> number of entries, in the order in which the annotations first name the splits."""
        return dict(self._database.execute("SELECT split, entries FROM size ORDER BY position"))

    @functools.cached_property
    def has_text_ids(self) -> bool:
        """Whether any text has an identity; no catalog has one that a version before these identities began."""
        tables = self._database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'text_id'")
        return bool(tables.fetchone()) and bool(self._database.execute("SELECT 1 FROM text_id LIMIT 1").fetchone())

    def entries(self, split: str, start: int, stop: int) -> Iterator[tuple[Place, Annotation]]:
        """The entries number `start` to `stop` (exclusive) of a split, in order."""
        query = _ENTRIES.format(text_ids=_TEXT_IDS if self.has_text_ids else "'[]'")
        for image, image_id, label, path, line, captions, text_ids in self._database.execute(
            query, (split, start, stop)
        ):
            texts, ids = (tuple(json.loads(values)) for values in (captions, text_ids))
            yield Place(path, line), Annotation(image, texts, split, image_id, label, text_ids=ids)

    def blob(self, name: str) -> Blob | None:
        """Where the bytes of an image lie; None if there is no such image."""
        query = "SELECT path, line, position, length FROM blob JOIN file ON file = file.number WHERE name = ?"
        row = self._database.execute(query, (name,)).fetchone()
        return None if row is None else Blob(Place(row[0], row[1]), row[2], row[3])

    def unnamed_blobs(self, split: str, prefix: str) -> int:
        """The number of images whose names begin with `prefix` and which no annotation of the split names."""
        query = (
            "SELECT COUNT(*) FROM blob WHERE substr(name, 1, ?) = ? AND NOT EXISTS "
            "(SELECT 1 FROM entry WHERE split = ? AND grouped = name)"
        )
        return self._database.execute(query, (len(prefix), prefix, split)).fetchone()[0]

    def remarks(self) -> tuple[str, ...]:
        """The lines that `remark` noted, in order."""
        return tuple(line for (line,) in self._database.execute("SELECT line FROM remark ORDER BY number"))

    def skipped(self) -> dict[str, int]:
        """Split name (or "") -> number of unusable lines."""
        return dict(self._database.execute("SELECT split, COUNT(*) FROM skipped GROUP BY split"))

    def skipped_lines(self) -> Iterable[str]:
        """Each unusable line with its place and reason."""
        query = "SELECT path, line, reason FROM skipped JOIN file ON file = file.number ORDER BY skipped.number"
        return (f"{Place(path, line)}: {reason}" for path, line, reason in self._database.execute(query))

    def __reduce__(self) -> tuple[type["Catalog"], tuple[Path]]:
        return Catalog, (self.path,)

    def _add_captions(self, split: str, number: int, annotation: Annotation) -> None:
        for caption, text_id in itertools.zip_longest(annotation.captions, annotation.text_ids, fillvalue=""):
            self._database.execute("INSERT INTO caption VALUES (?, ?, ?, ?)", (split, number, self._captions, caption))
            if text_id:
                self._database.execute("INSERT INTO text_id VALUES (?, ?)", (self._captions, text_id))
            self._captions += 1

    def _see(self, split: str, name: str, file: int, place: Place) -> None:
        row = (split, name, file, place.line)
        if not self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?)", row).rowcount:
            first = Place(*self._database.execute(_SEEN_PLACE, (split, name)).fetchone())
            raise UnusableRecord(f"{name} has been annotated before, in {first}")

    def _file_number(self, path: str) -> int:
        if path not in self._files:
            self._files[path] = len(self._files) + 1
            self._database.execute("INSERT INTO file VALUES (?, ?)", (self._files[path], path))
        return self._files[path]
