"""The table of an index: which file has which content, which content lies in which row; SQLite.

A content is the bytes of a file, known by their digest. It has a row of embeddings, or a problem: the reason why it is
no picture. Several files may have one content, which is encoded once; a file that moves keeps its content.

Every change is one transaction, made after its embeddings are on the disk. So a process that is killed leaves the state
before or after it, and whoever reads meanwhile sees one of the two.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2d2_jax.atomic import writing
from r2d2_jax.errors import UserError
from r2d2_jax.search.files import Content, FoundFile

CATALOG = "catalog.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS contents (digest BLOB PRIMARY KEY, row INTEGER, problem TEXT);
CREATE INDEX IF NOT EXISTS contents_by_row ON contents (row);
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, digest BLOB, problem TEXT);
CREATE INDEX IF NOT EXISTS files_by_digest ON files (digest);
"""
_WAIT_SECONDS = 60.0  # for another process's transaction, which takes milliseconds
_AT_ONCE = 500  # values in one question; SQLite has a limit


@dataclass(frozen=True)
class Changes:
    """How the files of a folder differ from those of the catalogue.

    files: in the folder. new, changed, removed: of these, and of those that the folder has no more.
    """

    files: int
    new: int
    changed: int
    removed: int


class Catalog:
    """One connection, of one thread. Whoever changes something holds the lock of the index's folder."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        """Opens the catalogue of an index.

        Raises:
            UserError: there is none and it is not to be created, or it is damaged or cannot be opened.
        """
        self._path = folder / CATALOG
        if not create and not self._path.is_file():
            raise UserError(f"{folder} holds no index; index the photographs first, without --no_update")
        with self._told():
            self._connection = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
        if create:
            with self._told():
                self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All changes within, or none; `kind` DEFERRED is for questions alone, whose answers belong together.

        Raises:
            UserError: the disk refuses it, or the catalogue is damaged.
        """
        with self._told():
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                if kind != "DEFERRED":
                    self.set_fact("version", self.fact("version", 0) + 1)
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # of a full disk, which has ended the transaction already
                    self._connection.execute("ROLLBACK")
                raise

    def fact(self, name: str, default: Any = None) -> Any:
        """A plain JSON value by its name: "model", "photos", "generation", "complete", "version", "rounded"."""
        with self._told():
            found = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if found is None else json.loads(found[0])

    def set_fact(self, name: str, value: Any) -> None:
        """Sets what `fact` reads, within a transaction."""
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def compare(self, found: Iterable[FoundFile]) -> Changes:
        """Notes, for this connection alone, which files are there and which of them have to be read."""
        run = self._connection.execute
        with self._told():
            run("CREATE TEMP TABLE found (path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER)")
            run("BEGIN")
            rows = ((file.path, file.size, file.mtime) for file in found)
            self._connection.executemany("INSERT OR IGNORE INTO found VALUES (?, ?, ?)", rows)
            run("COMMIT")
            run(
                "CREATE TEMP TABLE unread AS SELECT found.*, files.path IS NOT NULL AS known FROM found "
                "LEFT JOIN files USING (path) WHERE files.path IS NULL OR files.size != found.size "
                "OR files.mtime != found.mtime ORDER BY found.path"
            )
        new, changed = (self._number(f"SELECT COUNT(*) FROM unread WHERE known = {known}") for known in (0, 1))
        removed = self._number(f"SELECT COUNT(*) FROM files WHERE {_GONE}")
        return Changes(self._number("SELECT COUNT(*) FROM found"), new, changed, removed)

    def unread(self) -> Iterator[FoundFile]:
        """The files that have to be read, after `compare`; the table may change meanwhile."""
        last = 0
        while True:
            with self._told():
                page = self._connection.execute(
                    "SELECT rowid, path, size, mtime FROM unread WHERE rowid > ? ORDER BY rowid LIMIT ?",
                    (last, _AT_ONCE),
                ).fetchall()
            if not page:
                return
            last = page[-1][0]
            yield from (FoundFile(*row[1:]) for row in page)

    def knows(self, digest: bytes) -> bool:
        """Whether a content has a row or a problem."""
        with self._told():
            return bool(self._connection.execute("SELECT 1 FROM contents WHERE digest = ?", (digest,)).fetchone())

    def rows(self) -> int:
        """Number of rows of embeddings that count, those of removed pictures included."""
        return self._number("SELECT COALESCE(MAX(row) + 1, 0) FROM contents")

    def add(self, read: Sequence[Content]) -> None:
        """Enters files as they were read, in one transaction; their pictures have the next rows, in order."""
        with self.transaction():
            row = self.rows()
            for content in read:
                file, unreadable = content.file, content.digest is None
                own_problem = content.problem if unreadable else None
                values = (file.path, file.size, file.mtime, content.digest, own_problem)
                self._connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", values)
                if content.pixels is not None:
                    self._connection.execute("INSERT INTO contents VALUES (?, ?, NULL)", (content.digest, row))
                    row += 1
                elif not unreadable and content.problem is not None:
                    self._connection.execute(
                        "INSERT INTO contents VALUES (?, NULL, ?)", (content.digest, content.problem)
                    )

    def remove_absent(self) -> None:
        """Removes the files that are gone, after `compare`, and problems of contents that no file has."""
        with self.transaction():
            self._connection.execute(f"DELETE FROM files WHERE {_GONE}")
            self._connection.execute(
                "DELETE FROM contents WHERE row IS NULL AND digest NOT IN "
                "(SELECT digest FROM files WHERE digest IS NOT NULL)"
            )

    def live_rows(self) -> np.ndarray:
        """int64 [r], ascending: the rows of pictures that a file still has."""
        with self._told():
            found = self._connection.execute(
                "SELECT DISTINCT row FROM contents JOIN files USING (digest) WHERE row IS NOT NULL ORDER BY row"
            )
            return np.fromiter((row for (row,) in found), np.int64)

    def renumber(self, live: np.ndarray, generation: int) -> None:
        """Gives the live rows the numbers from 0 and forgets all others, in one transaction.

        Args:
            live: from `live_rows`.
            generation: of the file that has the rows in their new order.
        """
        with self.transaction():
            run = self._connection.execute
            run("CREATE TEMP TABLE kept (number INTEGER PRIMARY KEY, row INTEGER UNIQUE)")
            self._connection.executemany("INSERT INTO kept VALUES (?, ?)", enumerate(live.tolist()))
            run("DELETE FROM contents WHERE row IS NOT NULL AND row NOT IN (SELECT row FROM kept)")
            run(
                "UPDATE contents SET row = (SELECT number FROM kept WHERE kept.row = contents.row) "
                "WHERE row IS NOT NULL"
            )
            run("DROP TABLE kept")
            self.set_fact("generation", generation)

    def files_in(self, rows: Sequence[int]) -> dict[int, tuple[bytes, list[bytes]]]:
        """Digest, and paths of the files in order, of each row; a row whose files are gone is absent."""
        found: dict[int, tuple[bytes, list[bytes]]] = {}
        for start in range(0, len(rows), _AT_ONCE):
            part = [int(row) for row in rows[start : start + _AT_ONCE]]
            marks = ", ".join("?" * len(part))
            with self._told():
                listed = self._connection.execute(
                    "SELECT row, digest, path FROM contents JOIN files USING (digest) "
                    f"WHERE row IN ({marks}) ORDER BY path",
                    part,
                ).fetchall()
            for row, digest, path in listed:
                found.setdefault(row, (digest, []))[1].append(path)
        return found

    def files_of(self, digest: bytes) -> list[FoundFile]:
        """The files of a content that is a picture, in order; none if the index knows no such picture."""
        with self._told():
            found = self._connection.execute(
                "SELECT path, size, mtime FROM files JOIN contents USING (digest) "
                "WHERE digest = ? AND row IS NOT NULL ORDER BY path",
                (digest,),
            )
            return [FoundFile(*row) for row in found]

    def pictures(self) -> int:
        """Number of files that have an embedding."""
        return self._number("SELECT COUNT(*) FROM files JOIN contents USING (digest) WHERE row IS NOT NULL")

    def broken(self) -> Iterator[tuple[bytes, str]]:
        """Path of each file that is no picture, and why, in order."""
        with self._told():
            yield from self._connection.execute(
                "SELECT path, COALESCE(files.problem, contents.problem) AS reason FROM files "
                "LEFT JOIN contents USING (digest) WHERE reason IS NOT NULL ORDER BY path"
            )

    def _number(self, question: str) -> int:
        with self._told():
            return int(self._connection.execute(question).fetchone()[0])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite says of the disk or of a damaged file is bad input."""
        try:
            with writing(self._path, advice="run the same command again"):
                yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise UserError(
                    f"{self._path} is in use by another process for more than {_WAIT_SECONDS:.0f} s; try again later"
                ) from error
            raise
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):  # a bug of ours
                raise
            raise UserError(f"the index in {self._path.parent} is damaged: {error}; delete that folder") from error


_GONE = "path NOT IN (SELECT path FROM found)"
