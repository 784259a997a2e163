"""Rows on disk: written behind those that count, read through maps, never longer in memory than a block."""

import re
from pathlib import Path

import numpy as np
import pytest

from r2d2_jax.search import store
from r2d2_jax.search.store import RowFile, blocks, chosen_rows


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start * 3, (start + count) * 3, dtype=np.float32).reshape(count, 3)


def test_rows_behind_those_that_count_are_overwritten(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.f32", 3)
    file.write(0, rows(4))
    file.write(2, rows(3, 2))
    np.testing.assert_array_equal(file.rows(5), rows(5))
    assert file.path.stat().st_size == 5 * 12


def test_half_a_row_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.f32", 3)
    file.write(0, rows(2))
    with file.path.open("ab") as torn:
        torn.write(b"12345")
    file.write(2, rows(1, 2))
    np.testing.assert_array_equal(file.rows(3), rows(3))


def test_a_map_is_read_only_and_outlives_the_file(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.f32", 3)
    file.write(0, rows(2))
    mapped = file.rows(2)
    file.path.unlink()
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    np.testing.assert_array_equal(mapped, rows(2))


def test_a_file_that_is_too_short(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.f32", 3)
    file.write(0, rows(2))
    with pytest.raises(ValueError):
        file.rows(3)
    assert file.rows(0).shape == (0, 3)


def test_chosen_rows_of_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 2)
    first, second = RowFile(tmp_path / "a", 3), RowFile(tmp_path / "b", 3)
    first.write(0, rows(7))
    chosen = np.array([0, 2, 3, 6])
    second.write_chosen(first.rows(7), chosen)
    np.testing.assert_array_equal(second.rows(4), rows(7)[chosen])


def test_chosen_rows_of_a_large_map_bring_nothing_else_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the pages around them, of which few rows that lie apart touch as many as all rows would."""
    monkeypatch.setattr(store, "_LARGEST_RESIDENT", 2**20)
    file = RowFile(tmp_path / "a.f32", 3)
    file.write(0, rows(2**20))
    mapped, numbers = file.rows(2**20), np.arange(0, 2**20, 2**12)[::-1]
    np.testing.assert_array_equal(mapped[numbers], rows(2**20)[numbers])
    assert resident(file.path) > 0
    np.testing.assert_array_equal(chosen_rows(mapped, numbers), rows(2**20)[numbers])
    assert resident(file.path) == 0


def resident(path: Path) -> int:
    """KiB of a mapped file in this process's memory."""
    maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="utf-8"))
    (found,) = (each for each in maps if str(path) in each)
    size = re.search(r"Rss:\s*(\d+) kB", found)
    assert size is not None
    return int(size[1])


def test_blocks_of_a_large_map_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 2)
    monkeypatch.setattr(store, "_LARGEST_RESIDENT", 0)
    file = RowFile(tmp_path / "a", 3)
    file.write(0, rows(5))
    mapped = file.rows(5)
    parts = [(start, np.array(block)) for start, block in blocks(mapped[1:])]
    assert [start for start, _ in parts] == [0, 2]
    np.testing.assert_array_equal(np.concatenate([block for _, block in parts]), rows(5)[1:])
    assert store._map_of(mapped[1:]) is not None
    assert [start for start, _ in blocks(rows(3))] == [0, 2]
