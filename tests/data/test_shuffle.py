"""Every epoch is another permutation of all records, and only a window of shards is read from at a time."""

import pickle

import numpy as np
import pytest

from r2d2_jax.data.shuffle import CorpusOrder

LENGTHS = (5, 1, 9, 3, 7, 2, 0, 4)
RECORDS = sum(LENGTHS)


def epoch(order: CorpusOrder, number: int) -> list[int]:
    return [order[row] for row in range(number * RECORDS, (number + 1) * RECORDS)]


@pytest.mark.parametrize("window_shards", [1, 2, 3, 8, 100])
def test_an_epoch_has_every_record_once(window_shards: int) -> None:
    order = CorpusOrder(LENGTHS, seed=3, window_shards=window_shards, rows=10_000)
    epochs = [epoch(order, number) for number in (0, 1, 2, 50)]
    assert all(sorted(rows) == list(range(RECORDS)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4


def test_rows_are_whole_epochs() -> None:
    assert len(CorpusOrder(LENGTHS, 0, 2, rows=10 * RECORDS + 5)) == 10 * RECORDS


def test_it_depends_on_the_seed_alone() -> None:
    order = CorpusOrder(LENGTHS, seed=3, window_shards=2, rows=1000)
    again = pickle.loads(pickle.dumps(order))
    assert [again[row] for row in reversed(range(100))] == [order[row] for row in reversed(range(100))]
    assert epoch(CorpusOrder(LENGTHS, seed=4, window_shards=2, rows=1000), 0) != epoch(order, 0)


def test_shards_of_a_window_are_read_together_and_windows_change() -> None:
    order = CorpusOrder([10] * 40, seed=0, window_shards=4, rows=10_000)
    windows = []
    for number in range(2):
        shards = np.array([order[row] // 10 for row in range(number * 400, (number + 1) * 400)]).reshape(10, 40)
        found = [frozenset(window.tolist()) for window in shards]
        assert all(len(window) == 4 for window in found)
        windows.append(set(found))
    assert windows[0] != windows[1]


def test_a_window_is_mixed_as_a_whole() -> None:
    """In 300 epochs of three records in two shards, each of the six orders comes about equally often."""
    order = CorpusOrder([2, 1], seed=0, window_shards=2, rows=10_000)
    found = [tuple(order[3 * number + row] for row in range(3)) for number in range(300)]
    counts = [found.count(permutation) for permutation in sorted(set(found))]
    assert len(counts) == 6
    assert min(counts) > 25
