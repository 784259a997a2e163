"""From scores to ranks, and from ranks to recall; ties and NaN never help."""

from collections.abc import Mapping

import numpy as np

CUTOFFS = (1, 5, 10)
NEVER = np.iinfo(np.int64).max  # the rank of what no cut-off finds


def best_ranks(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Rank from 0 of each row's best-ranked positive; `NEVER` without one.

    Ties count against the model, so that a model with one score for everything has the worst rank, not the best; so
    does NaN: a positive with this score is not found, and any other is ahead of every positive (our decision).

    Args:
        scores: [q c].
        positive: bool [q c].
    """
    found = positive & ~np.isnan(scores)
    best = np.max(np.where(found, scores, -np.inf), axis=1, keepdims=True)
    ahead = ~(scores < best) & ~positive
    return np.where(found.any(axis=1), ahead.sum(axis=1), NEVER)


def top_candidates(scores: np.ndarray, positive: np.ndarray, count: int) -> np.ndarray:
    """Columns int32 [q min(count, c)] of each row's highest scores, the best first.

    Of equal scores the positives come last, and then the later column; NaN comes after everything. Scores are compared
    in float32. No row is sorted whole: score, positive and column become one number, and the smallest of these are
    picked and sorted.
    """
    columns = scores.shape[1]
    keys = _descending_bits(scores) << np.uint64(32)
    keys |= (positive.astype(np.uint64) << np.uint64(31)) | np.arange(columns, dtype=np.uint64)
    if count < columns:
        keys.partition(count - 1, axis=1)
        keys = keys[:, :count]
    return (np.sort(keys, axis=1) & np.uint64(2**31 - 1)).astype(np.int32)


def _descending_bits(scores: np.ndarray) -> np.ndarray:
    """uint64 in 32 bits, the smaller the higher the score is; equal for equal scores; NaN has the largest."""
    scores = scores.astype(np.float32) + np.float32(0)  # makes 0 of -0
    bits = scores.view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return np.where(np.isnan(scores), np.uint32(2**32 - 1), ~ascending).astype(np.uint64)


def reranked_ranks(scores: np.ndarray, answers: np.ndarray, dual: np.ndarray) -> np.ndarray:
    """`best_ranks` once each row's candidates are ordered by new scores.

    Behind the candidates the others follow in the order of their cosines, so a cut-off beyond the candidates measures
    that list (our decision; the published code leaves them in no order).

    Args:
        scores: [q r] of the candidates from `top_candidates`; the published ones are cosine + match probability.
        answers: bool [q r], which of the candidates are right.
        dual: int [q], `best_ranks` by cosine among all.
    """
    return np.where(answers.any(axis=1), best_ranks(scores, answers), dual)


def recalls_of(ranks: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Recall in per cent by the ranks int [q] of each direction's queries; see `recalls_at`."""
    hits = {name: 100 * float(np.mean(values)) for name, values in hits_of(ranks).items()}
    return with_means(hits)


def hits_of(ranks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bool [q] by "i2t_r1" ... "t2i_r10": whether each query has a hit."""
    return {f"{direction}_r{k}": ranks[direction] < k for direction in ranks for k in CUTOFFS}


def with_means(recall: dict[str, float]) -> dict[str, float]:
    """Adds "i2t_mean" and "t2i_mean" over the cut-offs; "mean", over all; with both directions "r10", the mean of both.

    Args:
        recall: of one direction or both, "i2t_r1" ... "t2i_r10", in per cent.
    """
    directions = [each for each in ("i2t", "t2i") if f"{each}_r1" in recall]
    result: dict[str, float] = {}
    for direction in directions:
        at = {f"{direction}_r{k}": recall[f"{direction}_r{k}"] for k in CUTOFFS}
        result |= at | {f"{direction}_mean": float(np.mean(list(at.values())))}
    averaged = ("mean", "r10") if len(directions) == 2 else ("mean",)
    return result | {name: sum(result[f"{each}_{name}"] for each in directions) / len(directions) for name in averaged}
