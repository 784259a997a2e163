"""Embeddings on disk: rows of float32 in one file that only grows, read through memory maps.

A row counts once the catalogue names it; what a killed process wrote beyond the last such row is overwritten. Rows stay
float32, 3 KB each at 768 numbers: a cosine is then the one that an evaluation computes.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r2d2_jax.atomic import writing, written_whole

# Rows of a block, 24 MB at 768 numbers: small beside everything else.
BLOCK = 8192
# A map of more bytes than this gives back its pages after each block, so that reading all of it takes no memory.
_LARGEST_RESIDENT = 2**29
# So many rows that lie apart are read before their pages are given back: Linux may keep a file in pages of 2 MB, and
# one row then brings a whole page into the memory of the process.
_SCATTERED = 64


class RowFile:
    """Rows of one dtype in a file.

    Attributes:
        path: the file. width: numbers of a row.
    """

    def __init__(self, path: Path, width: int, dtype: type[np.generic] = np.float32) -> None:
        self.path, self.width, self._dtype = path, width, np.dtype(dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * self._dtype.itemsize

    def write(self, start: int, rows: np.ndarray) -> None:
        """Writes rows [r width] at a position, and what lies behind them is cut off; on the disk when it returns.

        Raises:
            UserError: the disk refuses them.
        """
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            with open(descriptor, "r+b") as file:
                file.truncate(start * self.row_bytes)
                file.seek(0, os.SEEK_END)
                file.write(np.ascontiguousarray(rows, self._dtype).data)
                file.flush()
                os.fsync(file.fileno())

    def rows(self, count: int) -> np.ndarray:
        """The first `count` rows [count width], mapped into memory and read-only.

        Raises:
            FileNotFoundError: there is no file, and there should be rows.
            ValueError: it has fewer rows.
        """
        if not count:
            return np.zeros((0, self.width), self._dtype)
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), count * self.row_bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, self._dtype).reshape(count, self.width)

    def write_chosen(self, source: np.ndarray, chosen: np.ndarray) -> None:
        """Makes the file, whole or not at all, of some rows of another.

        Args:
            source: [n width], mapped.
            chosen: int [r], ascending.

        Raises:
            UserError: the disk refuses it.
        """
        with written_whole(self.path) as unfinished, unfinished.open("wb") as file:
            for start in range(0, len(chosen), BLOCK):
                file.write(chosen_rows(source, chosen[start : start + BLOCK]).data)


def blocks(rows: np.ndarray, size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, block [b width]) of mapped rows; of large files no more than a block stays in memory.

    Args:
        rows: [n width].
        size: `b`; None means `BLOCK`.
    """
    size = size or BLOCK
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
        _give_back(rows)


def chosen_rows(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A copy of some rows [r width] of mapped ones [n width]; of large files nothing else stays in memory.

    Args:
        rows: [n width].
        numbers: int [r], in any order.
    """
    chosen = np.empty((len(numbers), rows.shape[1]), rows.dtype)
    for start in range(0, len(numbers), _SCATTERED):
        chosen[start : start + _SCATTERED] = rows[numbers[start : start + _SCATTERED]]
        _give_back(rows)
    return chosen


def _give_back(rows: np.ndarray) -> None:
    """Takes the pages of a large map out of this process's memory; the system may keep the file in its own."""
    if rows.nbytes > _LARGEST_RESIDENT and (mapped := _map_of(rows)) is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def _map_of(rows: np.ndarray) -> mmap.mmap | None:
    """The memory map below an array; None of an array that has none."""
    owner: object = rows
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, mmap.mmap) else None
