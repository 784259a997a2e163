"""Exact and approximate neighbours against a sort of all cosines."""

import numpy as np
import pytest

from r2d2_jax import extras
from r2d2_jax.errors import UserError
from r2d2_jax.search import nearest
from r2d2_jax.search.nearest import Rounding, approximate_best, exact_best, measured_recall


def unit(count: int, width: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sorted_rows(rows: np.ndarray, live: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    """The oracle: all live rows by cosine, then by number."""
    return sorted(np.flatnonzero(live), key=lambda row: (-float(rows[row] @ query), row))[:count]


@pytest.mark.parametrize("block", [7, 64, 10_000])
def test_exact_is_a_sort_of_all_cosines(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SCANNED_AT_ONCE", block)
    rows, queries = unit(200, 16, 0), unit(3, 16, 1)
    live = np.random.default_rng(2).random(200) < 0.7
    found = exact_best(rows, live, queries, 12)
    for query, near, cosine in zip(queries, found.rows, found.cosine, strict=True):
        assert near.tolist() == sorted_rows(rows, live, query, 12)
        np.testing.assert_allclose(cosine, rows[near] @ query, atol=1e-6)


def test_equal_cosines_are_in_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SCANNED_AT_ONCE", 3)
    rows = np.repeat(np.eye(2, 8, dtype=np.float32), 4, axis=0)  # whose products are exact
    assert exact_best(rows, np.ones(8, bool), rows[:1], 8).rows.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_fewer_live_rows_than_asked_for() -> None:
    rows, live = unit(5, 8, 0), np.array([True, False, True, False, False])
    assert sorted(exact_best(rows, live, rows[:1], 10).rows[0].tolist()) == [0, 2]
    assert exact_best(rows, np.zeros(5, bool), rows[:1], 10).rows.shape == (1, 0)


def test_recall_of_the_approximate_index() -> None:
    pytest.importorskip("usearch")
    rows, queries, live = unit(20_000, 64, 0), unit(50, 64, 1), np.ones(20_000, bool)
    codes = Rounding.of(rows).rounded(rows)
    exact, found = (
        exact_best(rows, live, queries, 10),
        approximate_best(codes, rows, live, queries, 10),
    )
    hits = [len(set(a) & set(b)) for a, b in zip(exact.rows.tolist(), found.rows.tolist(), strict=True)]
    assert sum(hits) / 500 >= 0.95
    assert measured_recall(codes, rows, live) >= 0.95
    same = exact.rows == found.rows
    np.testing.assert_allclose(found.cosine[same], exact.cosine[same], atol=1e-6)


def test_a_shift_common_to_all_rows_costs_no_recall() -> None:
    """Embeddings lie in a narrow cone; without the mean, the bytes would tell little else than its axis."""
    pytest.importorskip("usearch")
    rows = unit(3000, 64, 0) * 0.05
    rows[:, 0] += 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    codes = Rounding.of(rows).rounded(rows)
    assert measured_recall(codes, rows, np.ones(3000, bool)) >= 0.95


def test_removed_rows_are_never_found_however_many_are_nearest() -> None:
    pytest.importorskip("usearch")
    rows = unit(2000, 16, 0)
    query = rows[:1]
    order = np.argsort(-(rows @ query[0]))
    live = np.ones(2000, bool)
    live[order[:900]] = False
    codes = Rounding.of(rows).rounded(rows)
    found = approximate_best(codes, rows, live, query, 5).rows[0]
    assert found.tolist() == order[900:905].tolist()


def test_rows_that_are_all_alike_can_be_rounded() -> None:
    rows = np.repeat(unit(1, 8, 0), 5, axis=0)
    assert np.abs(Rounding.of(rows).rounded(rows)).max() <= 1


def test_recall_needs_no_more_pictures_than_there_are() -> None:
    pytest.importorskip("usearch")
    rows = unit(1, 8, 0)
    assert measured_recall(Rounding.of(rows).rounded(rows), rows, np.ones(1, bool)) == 1.0


def test_without_usearch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    rows = unit(3, 8, 0)
    with pytest.raises(UserError, match=r"an approximate index needs usearch, .*\[search\]"):
        approximate_best(np.zeros((3, 8), np.int8), rows, np.ones(3, bool), rows[:1], 1)
