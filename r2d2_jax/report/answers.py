"""What both stages answer to single queries, and which of the answers are shown."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from r2d2_jax.evaluation.ground_truth import GroundTruth
from r2d2_jax.evaluation.nearest import Nearest, nearest
from r2d2_jax.evaluation.ranks import reranked_ranks, top_candidates
from r2d2_jax.evaluation.retrieval import RetrievalSettings, Scored, candidate_pairs

SHOWN = 5  # candidates of a query


@dataclass(frozen=True)
class Stage:
    """What one stage answers to `q` queries; `k` is at most SHOWN.

    ranks: int [q], the rank from 0 of the best right answer. best: int32 [q k], the candidates, the best first.
    right: bool [q k], of these. cosine: float32 [q k]. match: match probability float32 [q k], NaN where a candidate
    was not re-ranked.
    """

    ranks: np.ndarray
    best: np.ndarray
    right: np.ndarray
    cosine: np.ndarray
    match: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What both stages answer to the asked queries of one direction.

    queries: int [q], positions of the images ("i2t") or texts ("t2i") that were asked. total: how many queries the
    split has. reranked: None for a model without cross encoders, or where nothing is re-ranked.
    """

    direction: str
    queries: np.ndarray
    total: int
    dual: Stage
    reranked: Stage | None

    @property
    def last(self) -> Stage:
        """The stage that has the last word."""
        return self.reranked or self.dual


def answers(
    gallery: Scored, truth: GroundTruth, settings: RetrievalSettings, mesh: Mesh, most: int
) -> dict[str, Answers]:
    """The answers of both stages by direction.

    Args:
        gallery: embeddings and match probabilities.
        truth: the right answers.
        settings: directions, and how many candidates are re-ranked.
        mesh: the devices.
        most: queries of a direction that are asked, at even distances; the ranks of each are among all candidates.
    """
    embed, count = (gallery.image_embed, gallery.text_embed), max(settings.rerank, SHOWN)
    found = {each: nearest(each, truth, *embed, count, mesh) for each in settings.directions}
    total = {each: len(near.queries) for each, near in found.items()}
    found = {each: _rows(near, evenly(len(near.queries), most)) for each, near in found.items()}
    match = _match(gallery, found, settings.rerank)
    return {
        each: Answers(each, near.queries, total[each], _dual(near), _reranked(near, match[each]) if match else None)
        for each, near in found.items()
    }


def evenly(count: int, most: int) -> np.ndarray:
    """Positions int [min(count, most)] in a list of `count`, at even distances: its ends and what lies between."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)


def _rows(near: Nearest, rows: np.ndarray) -> Nearest:
    return Nearest(near.queries[rows], near.ranks[rows], near.candidates[rows], near.cosine[rows], near.answers[rows])


def _match(gallery: Scored, found: Mapping[str, Nearest], rerank: int) -> dict[str, np.ndarray]:
    """Match probability [q r] of each query's best candidates by direction; asked for together, so each pair once."""
    if not rerank:
        return {}
    pairs = [candidate_pairs(each, near.queries, near.candidates[:, :rerank]) for each, near in found.items()]
    probability = np.split(gallery.match(np.concatenate(pairs)), np.cumsum([len(each) for each in pairs])[:-1])
    return {
        each: match.reshape(len(near.queries), -1)
        for (each, near), match in zip(found.items(), probability, strict=True)
    }


def _dual(near: Nearest) -> Stage:
    shown = slice(0, SHOWN)
    unmatched = np.full(near.cosine[:, shown].shape, np.nan, np.float32)
    return Stage(near.ranks, near.candidates[:, shown], near.answers[:, shown], near.cosine[:, shown], unmatched)


def _reranked(near: Nearest, match: np.ndarray) -> Stage:
    """The candidates by match probability + cosine, as published; behind them the others, in the order of cosines."""
    count, all_of_them = match.shape[1], near.candidates.shape[1]
    scores, right = match + near.cosine[:, :count], near.answers[:, :count]
    behind = np.broadcast_to(np.arange(count, all_of_them, dtype=np.int32), (len(match), all_of_them - count))
    order = np.concatenate([top_candidates(scores, right, count), behind], axis=1)[:, :SHOWN]
    matched = np.pad(match, ((0, 0), (0, all_of_them - count)), constant_values=np.nan)
    listed = (np.take_along_axis(each, order, axis=1) for each in (near.candidates, near.answers, near.cosine, matched))
    return Stage(reranked_ranks(scores, right, near.ranks), *listed)


@dataclass(frozen=True)
class Changes:
    """What re-ranking does to the first answer of the asked queries, counted.

    right_before, right_after: queries whose first candidate is right. repaired: wrong before and right after.
    broken: right before and wrong after. nearer, farther: the best right answer has a better, or a worse rank.
    """

    queries: int
    right_before: int
    right_after: int
    repaired: int
    broken: int
    nearer: int
    farther: int


def changes(found: Answers) -> Changes | None:
    """What re-ranking changed; None where nothing was re-ranked."""
    if found.reranked is None:
        return None
    before, after = found.dual.ranks, found.reranked.ranks
    was, is_now = before == 0, after == 0
    counted = (was, is_now, ~was & is_now, was & ~is_now, after < before, after > before)
    return Changes(len(before), *(int(each.sum()) for each in counted))


def right_ones(found: Answers, count: int) -> np.ndarray:
    """Rows of queries that the last stage answers rightly: ordered by their rank before, taken at even distances."""
    rows = np.flatnonzero(found.last.ranks == 0)
    return _spread(rows, found.dual.ranks[rows], count)


def wrong_ones(found: Answers, count: int) -> np.ndarray:
    """Rows of queries that the last stage answers wrongly: ordered by their rank, taken at even distances."""
    rows = np.flatnonzero(found.last.ranks != 0)
    return _spread(rows, found.last.ranks[rows], count)


def _spread(rows: np.ndarray, key: np.ndarray, count: int) -> np.ndarray:
    ordered = rows[np.argsort(key, kind="stable")]
    return ordered[evenly(len(ordered), count)]
