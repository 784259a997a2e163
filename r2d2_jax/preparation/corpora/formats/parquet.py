"""The samples of a Parquet file, with a few rows in memory at a time.

Parquet is read by whole pages, whose size the writer decides: pyarrow looks after every 1,024 rows, or at the end of a
row group, whether a page is full. Of 1,024 images in a row group, all are in memory until they are read.
"""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import first_line
from r2d2_jax.preparation.corpora.formats.samples import Found, Sample

_BATCH_ROWS = 64  # our decision: a few MB of images
_READ_BYTES = 2**20  # our decision; pre_buffer would read the whole file into memory
_ROW_BYTES = 100  # our decision: an image and its text have more
DAMAGED = (pyarrow.ArrowException, OSError, UnicodeDecodeError)  # what damaged files raise
_TYPE_CHARACTERS = 60  # of a column's type in a message; our decision


class Layout(abc.ABC):
    """Which columns of a Parquet file hold what."""

    @abc.abstractmethod
    def columns(self, schema: pyarrow.Schema) -> list[str] | None:
        """The columns to read, None for all; raises UnusableRecord if the file has another layout."""

    @abc.abstractmethod
    def sample(self, number: int, row: dict[str, Any]) -> tuple[str, Sample | UnusableRecord] | None:
        """Key and sample of a row, whose number counts from 1; None if the row is none."""


def parquet_samples(archive: Path, layout: Layout) -> Iterator[Found]:
    """The samples of a Parquet file, in its order.

    Where it is broken from some point on, the last step says so and counts the rows that are lost.
    """
    size, rows, number = archive.stat().st_size, 1, 0
    try:
        with pyarrow.parquet.ParquetFile(archive, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            rows = max(1, min(file.metadata.num_rows, size // _ROW_BYTES))  # a damaged file may claim any number
            for number, row in enumerate(_rows(file, layout.columns(file.schema_arrow)), start=1):
                found = (str(number), row) if isinstance(row, UnusableRecord) else layout.sample(number, row)
                if found:
                    yield Found(*found, min(size, size * number // rows))
    except UnusableRecord as error:
        yield Found("", error, size, rows)
    except DAMAGED as error:
        reason = f"cannot be read as Parquet{f' after row {number}' if number else ''}: {first_line(error)}"
        yield Found("", UnusableRecord(reason), size, max(1, rows - number))


def parquet_files(folder: Path) -> list[Path]:
    """All Parquet files in a folder and below, in the order of their paths, without hidden ones."""
    paths = (path for path in folder.rglob("*.parquet") if path.is_file())
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(folder).parts))


def columns_with_types(schema: pyarrow.Schema) -> str:
    """The columns of a file, for a message."""
    named = (f"{field.name} ({_short(str(field.type))})" for field in schema)
    return ", ".join(named) or "no column"


def _short(text: str) -> str:
    return text if len(text) <= _TYPE_CHARACTERS else f"{text[:_TYPE_CHARACTERS]}..."


def _rows(file: pyarrow.parquet.ParquetFile, columns: list[str] | None) -> Iterator[dict[str, Any] | UnusableRecord]:
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            try:
                rows: list[dict[str, Any] | UnusableRecord] = batch.to_pylist()
            except UnicodeDecodeError:
                rows = [_row(batch, number) for number in range(batch.num_rows)]
            yield from rows


def _row(batch: pyarrow.RecordBatch, number: int) -> dict[str, Any] | UnusableRecord:
    try:
        row: dict[str, Any] = batch.slice(number, 1).to_pylist()[0]
        return row
    except UnicodeDecodeError as error:
        return UnusableRecord(f"a text of it is invalid UTF-8 at byte {error.start}")
