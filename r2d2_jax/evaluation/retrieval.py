"""Two-stage retrieval: recall of the dual encoder alone, and after the cross encoders have re-ranked its best."""

from dataclasses import dataclass

import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.evaluation.scorer import EncodedSplit, Scorer

CUTOFFS = (1, 5, 10)
# Score of pairs outside the re-ranked candidates (published code). Any number below every cosine gives the same ranks.
NOT_A_CANDIDATE = -100.0


def best_ranks(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Rank from 0 of each row's best-ranked positive.

    Ties count against the model, so that a model with one score for everything has the worst rank, not the best (our
    decision).

    Args:
        scores: [q c].
        positive: bool [q c]; every row has at least one True.
    """
    best = np.max(np.where(positive, scores, -np.inf), axis=1, keepdims=True)
    return np.sum((scores >= best) & ~positive, axis=1)


def recalls(scores: np.ndarray, caption_image: np.ndarray) -> dict[str, float]:
    """Recall both ways, in per cent.

    Args:
        scores: [images, texts].
        caption_image: int [texts], the image of each text. An image may have several; one within the cut-off is a hit.
            An image without texts is a candidate in t2i and no query in i2t.

    Returns:
        "i2t_r1" ... "t2i_r10"; "i2t_mean", "t2i_mean" over the cut-offs; "mean" over all six; "r10" over both
        directions.
    """
    queries = np.unique(caption_image)
    result = _one_way("i2t", scores[queries], np.equal.outer(queries, caption_image))
    result |= _one_way("t2i", scores.T, np.equal.outer(caption_image, np.arange(len(scores))))
    return result | _over_both(result)


def _one_way(direction: str, scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Recall of the queries [q c] at each cut-off, and the mean of these."""
    ranks = best_ranks(scores, positive)
    at = {f"{direction}_r{cutoff}": 100 * float(np.mean(ranks < cutoff)) for cutoff in CUTOFFS}
    return at | {f"{direction}_mean": float(np.mean(list(at.values())))}


def _over_both(recall: dict[str, float]) -> dict[str, float]:
    """The figures that average the two directions."""
    return {name: (recall[f"i2t_{name}"] + recall[f"t2i_{name}"]) / 2 for name in ("mean", "r10")}


def chance_recalls(caption_image: np.ndarray, num_images: int) -> dict[str, float]:
    """The expected `recalls`, in per cent, of a random order of the candidates."""
    captions = np.unique(caption_image, return_counts=True)[1]  # of each image that has any
    texts = len(caption_image)
    result: dict[str, float] = {}
    for direction, candidates, positives in (("i2t", texts, captions), ("t2i", num_images, np.ones(texts, int))):
        at = {f"{direction}_r{k}": 100 * float(np.mean(_hit_chance(candidates, positives, k))) for k in CUTOFFS}
        result |= at | {f"{direction}_mean": float(np.mean(list(at.values())))}
    return result | _over_both(result)


def _hit_chance(candidates: int, positives: np.ndarray, cutoff: int) -> np.ndarray:
    """1 - C(candidates - positives, cutoff) / C(candidates, cutoff), as a product."""
    draws = np.arange(min(cutoff, candidates))
    missed = np.clip((candidates - positives[:, None] - draws) / (candidates - draws), 0, 1)
    return 1 - np.prod(missed, axis=1)


def top_candidates(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns [q min(count, c)] of each row's highest scores, the best first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def reranked(scores: np.ndarray, candidates: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Cosine + match probability for each row's candidates, `NOT_A_CANDIDATE` elsewhere (published code).

    Args:
        scores: cosines [q c].
        candidates: columns [q r].
        probability: match probability [q r] of the candidates.
    """
    result = np.full_like(scores, NOT_A_CANDIDATE)
    rows = np.arange(len(scores))[:, None]
    result[rows, candidates] = scores[rows, candidates] + probability
    return result


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
    caption_image = encoded.caption_image
    report = RetrievalReport(recalls(cosine, caption_image), None, chance_recalls(caption_image, len(cosine)))
    if not rerank:
        return report
    queries = np.unique(caption_image)  # images without captions are candidates only
    texts, images = top_candidates(cosine[queries], rerank), top_candidates(cosine.T, rerank)
    of_image = np.stack([np.repeat(queries, texts.shape[1]), texts.ravel()], axis=1)
    of_text = np.stack([images.ravel(), np.repeat(np.arange(len(images)), images.shape[1])], axis=1)
    # Pairs that both directions ask for are scored once.
    pairs, places = np.unique(np.concatenate([of_image, of_text]), axis=0, return_inverse=True)
    probability = scorer.match(params, encoded, pairs)[places.ravel()]
    i2t = reranked(cosine[queries], texts, probability[: len(of_image)].reshape(texts.shape))
    t2i = reranked(cosine.T, images, probability[len(of_image) :].reshape(images.shape))
    both = _one_way("i2t", i2t, np.equal.outer(queries, caption_image))
    both |= _one_way("t2i", t2i, np.equal.outer(caption_image, np.arange(len(cosine))))
    return RetrievalReport(report.dual, both | _over_both(both), report.chance)
