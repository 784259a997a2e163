"""The samples of a Parquet file, with a few rows in memory at a time."""

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


def parquet_samples(archive: Path, image_columns: tuple[str, ...]) -> Iterator[Found]:
    """The rows of a Parquet file that have an image; rows without one are skipped.

    Args:
        archive: the file.
        image_columns: names of columns that may hold the images; the file has one of them.
    """
    try:
        with pyarrow.parquet.ParquetFile(archive, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            yield from _rows(file, archive.stat().st_size, image_columns)
    except (pyarrow.ArrowException, OSError) as error:
        yield Found("", UnusableRecord(f"cannot be read as Parquet: {first_line(error)}"), archive.stat().st_size)


def _rows(file: pyarrow.parquet.ParquetFile, size: int, image_columns: tuple[str, ...]) -> Iterator[Found]:
    columns = file.schema_arrow.names
    column = next((name for name in image_columns if name in columns), None)
    if column is None:
        reason = f"no column {', '.join(image_columns)}; there is {', '.join(columns)}"
        yield Found("", UnusableRecord(reason), size)
        return
    for number, row in enumerate(_each_row(file), start=1):
        image = row.pop(column)
        if image is not None:
            yield Found(str(row.get("key", number)), _sample(image, row), size * number // file.metadata.num_rows)


def _each_row(file: pyarrow.parquet.ParquetFile) -> Iterator[dict[str, Any]]:
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False):
            yield from batch.to_pylist()


def _sample(image: Any, row: dict[str, Any]) -> Sample | UnusableRecord:
    return Sample(image, row) if isinstance(image, bytes) else UnusableRecord("the image is not a column of bytes")
