"""Two-stage retrieval: recall of the dual encoder alone, and after the cross encoders have re-ranked its best."""

from dataclasses import dataclass

import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.evaluation.scorer import EncodedSplit, Scorer

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


def ground_truth(pairs: np.ndarray, num_images: int, num_texts: int) -> np.ndarray:
    """bool [images, texts], True at the right pairs int [p 2] of (image, text)."""
    positive = np.zeros((num_images, num_texts), bool)
    positive[pairs[:, 0], pairs[:, 1]] = True
    return positive


def recalls(scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Recall both ways, in per cent.

    Args:
        scores: [images, texts].
        positive: bool [images, texts], True where the two belong together. One right candidate within the cut-off is a
            hit. An image without texts is a candidate in t2i and no query in i2t.

    Returns:
        "i2t_r1" ... "t2i_r10"; "i2t_mean", "t2i_mean" over the cut-offs; "mean" over all six; "r10" over both
        directions.
    """
    queries = np.flatnonzero(positive.any(axis=1))
    result = _one_way("i2t", best_ranks(scores[queries], positive[queries]))
    result |= _one_way("t2i", best_ranks(scores.T, positive.T))
    return result | _over_both(result)


def _one_way(direction: str, ranks: np.ndarray) -> dict[str, float]:
    """Recall at each cut-off by the queries' ranks [q], and the mean of these."""
    at = {f"{direction}_r{cutoff}": 100 * float(np.mean(ranks < cutoff)) for cutoff in CUTOFFS}
    return at | {f"{direction}_mean": float(np.mean(list(at.values())))}


def _over_both(recall: dict[str, float]) -> dict[str, float]:
    """The figures that average the two directions."""
    return {name: (recall[f"i2t_{name}"] + recall[f"t2i_{name}"]) / 2 for name in ("mean", "r10")}


def chance_recalls(positive: np.ndarray) -> dict[str, float]:
    """The expected `recalls`, in per cent, of a random order of the candidates."""
    num_images, num_texts = positive.shape
    texts, images = positive.sum(axis=1), positive.sum(axis=0)
    result: dict[str, float] = {}
    for direction, candidates, positives in (("i2t", num_texts, texts[texts > 0]), ("t2i", num_images, images)):
        at = {f"{direction}_r{k}": 100 * float(np.mean(_hit_chance(candidates, positives, k))) for k in CUTOFFS}
        result |= at | {f"{direction}_mean": float(np.mean(list(at.values())))}
    return result | _over_both(result)


def _hit_chance(candidates: int, positives: np.ndarray, cutoff: int) -> np.ndarray:
    """1 - C(candidates - positives, cutoff) / C(candidates, cutoff), as a product."""
    draws = np.arange(min(cutoff, candidates))
    missed = np.clip((candidates - positives[:, None] - draws) / (candidates - draws), 0, 1)
    return 1 - np.prod(missed, axis=1)


def top_candidates(scores: np.ndarray, positive: np.ndarray, count: int) -> np.ndarray:
    """Columns [q min(count, c)] of each row's highest scores, the best first; of equal ones the positives come last."""
    return np.lexsort((positive, -scores))[:, :count]


def reranked_ranks(
    scores: np.ndarray, positive: np.ndarray, candidates: np.ndarray, probability: np.ndarray
) -> np.ndarray:
    """`best_ranks` once each row's candidates are ordered by cosine + match probability (published code).

    Behind the candidates the others follow in the order of their cosines, so a cut-off beyond the candidates measures
    that list (our decision; the published code leaves them in no order).

    Args:
        scores: cosines [q c].
        positive: bool [q c].
        candidates: columns [q r], from `top_candidates`.
        probability: match probability [q r] of the candidates.
    """
    answers = np.take_along_axis(positive, candidates, axis=1)
    among = best_ranks(np.take_along_axis(scores, candidates, axis=1) + probability, answers)
    return np.where(answers.any(axis=1), among, best_ranks(scores, positive))


@dataclass(frozen=True)
class RetrievalReport:
    """Recall in per cent of the dual encoder, re-ranked (None if not asked for), and of chance."""

    dual: dict[str, float]
    reranked: dict[str, float] | None
    chance: dict[str, float]


def evaluate_retrieval(scorer: Scorer, params: Params, encoded: EncodedSplit, rerank: int) -> RetrievalReport:
    """Retrieval both ways within one encoded split.

    Args:
        scorer: the compiled forwards.
        params: the model's parameters.
        encoded: the split's images and captions.
        rerank: how many candidates per query the cross encoders re-rank; 0 for none. Each direction re-ranks its own.
    """
    cosine = encoded.image_embed @ encoded.text_embed.T
    positive = ground_truth(encoded.pairs, *cosine.shape)
    report = RetrievalReport(recalls(cosine, positive), None, chance_recalls(positive))
    if not rerank:
        return report
    queries = np.flatnonzero(positive.any(axis=1))  # images without captions are candidates only
    text_fits, image_fits = positive[queries], positive.T
    texts = top_candidates(cosine[queries], text_fits, rerank)
    images = top_candidates(cosine.T, image_fits, rerank)
    of_image = np.stack([np.repeat(queries, texts.shape[1]), texts.ravel()], axis=1)
    of_text = np.stack([images.ravel(), np.repeat(np.arange(len(images)), images.shape[1])], axis=1)
    # Pairs that both directions ask for are scored once.
    pairs, places = np.unique(np.concatenate([of_image, of_text]), axis=0, return_inverse=True)
    probability = scorer.match(params, encoded, pairs)[places.ravel()]
    i2t, t2i = probability[: len(of_image)].reshape(texts.shape), probability[len(of_image) :].reshape(images.shape)
    both = _one_way("i2t", reranked_ranks(cosine[queries], text_fits, texts, i2t))
    both |= _one_way("t2i", reranked_ranks(cosine.T, image_fits, images, t2i))
    return RetrievalReport(report.dual, both | _over_both(both), report.chance)
