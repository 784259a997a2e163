"""The rows that are most like a query: exactly, over all of them, or over the same rounded to bytes.

Rounded rows take a quarter of the memory and are scanned several times as fast; the best of them are compared exactly.
That finds nearly what the exact scan finds whatever the query is. A graph of neighbours (HNSW) would visit fewer rows,
but takes long to build, and is at its worst for queries that lie apart from all rows, as texts do from pictures (our
decision; docs/search.md).
"""

from dataclasses import dataclass

import numpy as np

from r2d2_jax.evaluation.ranks import top_candidates
from r2d2_jax.extras import USEARCH, require
from r2d2_jax.search.store import blocks, chosen_rows

RECALL_AT = 10
_SAMPLE = 64  # pictures that are asked for their neighbours to measure recall
_LARGEST_BYTE = 127
# Rows of a product, 200 MB at 768 numbers. In smaller parts, the threads of one query's products wait for each other
# three times as long as they compute.
_SCANNED_AT_ONCE = 65_536
# Of so many rows for each one that is wanted, and so many more, the rounded scan's best are compared exactly.
_SPARE_TIMES, _SPARE = 4, 64


@dataclass(frozen=True)
class Found:
    """The best rows of each query, the best first.

    rows: int64 [q k]. cosine: float32 [q k]. `k` is smaller than asked for where there are fewer live rows.
    """

    rows: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True)
class Rounding:
    """How rows become bytes: rint((row - mean) * scale).

    Without the mean, which is the same for all rows and changes no order, the same bytes tell more.

    mean: float32 [e]. scale: of the largest deviation among the rows that it was made from.
    """

    mean: np.ndarray
    scale: float

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Rounding":
        """The rounding that fits embeddings [n e], at least one."""
        mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(embeddings)) / len(embeddings)
        mean = np.asarray(mean, np.float32)
        largest = max(float(np.abs(block - mean).max()) for _, block in blocks(embeddings))
        return cls(mean, _LARGEST_BYTE / largest if largest else 1.0)

    def rounded(self, rows: np.ndarray) -> np.ndarray:
        """int8 [n e] of rows [n e]; what lies beyond the largest deviation is cut off."""
        return _as_bytes((rows - self.mean) * self.scale)


def exact_best(embeddings: np.ndarray, live: np.ndarray, queries: np.ndarray, count: int) -> Found:
    """The live rows of the highest cosines; of equal ones the earlier row.

    Args:
        embeddings: float32 [n e] of unit norm.
        live: bool [n].
        queries: float32 [q e] of unit norm.
        count: rows for each query.
    """
    count = min(count, int(np.count_nonzero(live)))
    rows, cosine = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    for start, block in blocks(embeddings, _SCANNED_AT_ONCE):
        scores = (block @ queries.T).T
        scores[:, ~live[start : start + len(block)]] = -np.inf
        numbers = np.broadcast_to(np.arange(start, start + len(block)), scores.shape)
        rows, cosine = _merged(np.hstack([rows, numbers]), np.hstack([cosine, scores]), count)
    return Found(rows, cosine)


def approximate_best(
    codes: np.ndarray, embeddings: np.ndarray, live: np.ndarray, queries: np.ndarray, count: int
) -> Found:
    """As `exact_best`, among the rows that a scan of the rounded ones finds.

    Args:
        codes: int8 [n e], `Rounding.rounded` of the embeddings.
        embeddings, live, queries, count: as for `exact_best`.

    Raises:
        UserError: usearch is not installed.
    """
    require(USEARCH, "an approximate index", "search")
    count = min(count, int(np.count_nonzero(live)))
    parts = [_approximate(codes, embeddings, live, query, count) for query in queries]
    return Found(np.stack([part.rows for part in parts]), np.stack([part.cosine for part in parts]))


def _approximate(codes: np.ndarray, embeddings: np.ndarray, live: np.ndarray, query: np.ndarray, count: int) -> Found:
    """Of one query [e]: rows [k], cosine [k]. Removed rows may be among what the scan finds; then it is asked more."""
    from usearch.index import search

    peak = float(np.abs(query).max()) or 1.0
    rounded = _as_bytes(query * (_LARGEST_BYTE / peak))
    wanted = _SPARE_TIMES * count + _SPARE
    while True:
        wanted = min(wanted, len(codes))
        keys = np.asarray(search(codes, rounded, wanted, "ip", exact=True).keys).astype(np.int64)
        rows = np.sort(keys[live[keys]])
        if len(rows) >= count and (len(rows) >= 2 * count or wanted == len(codes)):
            break
        wanted *= 2
    cosine = (chosen_rows(embeddings, rows) @ query)[None]
    rows, cosine = _merged(rows[None], cosine, count)
    return Found(rows[0], cosine[0])


def measured_recall(codes: np.ndarray, embeddings: np.ndarray, live: np.ndarray) -> float:
    """Share of the nearest ten of a sample of pictures, each left out of its own, that the rounded scan finds, too."""
    rng, rows = np.random.default_rng(0), np.flatnonzero(live)
    sample = np.sort(rng.choice(rows, min(_SAMPLE, len(rows)), replace=False))
    queries, count = chosen_rows(embeddings, sample), RECALL_AT + 1
    exact = exact_best(embeddings, live, queries, count).rows
    found = approximate_best(codes, embeddings, live, queries, count).rows
    shares = []
    for own, right, there in zip(sample, exact, found, strict=True):
        neighbours = [row for row in right if row != own][:RECALL_AT]
        shares.append(np.isin(neighbours, there[there != own][:RECALL_AT]).mean() if neighbours else 1.0)
    return float(np.mean(shares))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(-_LARGEST_BYTE, _LARGEST_BYTE).astype(np.int8)


def _merged(rows: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best columns of each row of both [q c], in order."""
    best = top_candidates(scores, np.zeros(scores.shape, bool), count)
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
