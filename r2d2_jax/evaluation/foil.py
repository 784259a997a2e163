"""Choosing the true caption over a foil: whether a model binds attributes to objects or only sees a bag of words."""

from dataclasses import dataclass

import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.scorer import EncodedSplit, Scorer

CHANCE = 50.0


@dataclass(frozen=True)
class FoilReport:
    """Share in per cent of images whose true caption scores higher than the foil; chance is 50."""

    dual: float
    reranked: float | None
    match: float | None


def check_foil_split(split: EvaluationSplit) -> None:
    """Raises UserError unless every image has exactly two captions of its own, the true one and the foil."""
    captions = np.bincount(split.pairs[:, 0], minlength=split.num_images)
    if np.any(captions != 2):
        image = int(np.argmax(captions != 2))
        raise UserError(
            f"the foil split's record {split.image_ids[image]!r} has {captions[image]} caption(s); expected exactly "
            'two: the true caption and its foil. Prepare the split again or set data.foil_split to ""'
        )
    texts, images = np.unique(split.pairs[:, 1], return_counts=True)
    if np.any(images > 1):
        text = texts[int(np.argmax(images > 1))]
        raise UserError(
            f"the foil split's caption {split.captions[text]!r} belongs to several images by its text_id, so it cannot "
            "be told whether it is true or a foil; expected captions of one image each. Prepare the split again "
            'without text_ids or set data.foil_split to ""'
        )


def evaluate_foils(scorer: Scorer, params: Params, encoded: EncodedSplit, *, rerank: bool) -> FoilReport:
    """Scores each image against its true caption and its foil.

    A tie is not a hit: a model that cannot tell the two apart scores below chance, never above it.

    Args:
        scorer: the compiled forwards.
        params: the model's parameters.
        encoded: a foil split: pairs 2i and 2i + 1 are image i with its true caption and with its foil.
        rerank: also score with the cross encoders; cosine + match probability as in retrieval, and match alone.
    """
    scores = foil_scores(scorer, params, encoded, match=rerank)
    if scores.match is None:
        return FoilReport(_accuracy(scores.cosine), None, None)
    return FoilReport(_accuracy(scores.cosine), _accuracy(scores.cosine + scores.match), _accuracy(scores.match))


@dataclass(frozen=True)
class FoilScores:
    """Scores float32 [i 2] of each image with its true caption and with its foil; match is None if not asked for."""

    cosine: np.ndarray
    match: np.ndarray | None


def foil_scores(scorer: Scorer, params: Params, encoded: EncodedSplit, *, match: bool) -> FoilScores:
    """The cosines of a foil split, encoded as for `evaluate_foils`, and its match probabilities if asked for."""
    pairs = encoded.pairs
    cosine = np.sum(encoded.image_embed[pairs[:, 0]] * encoded.text_embed[pairs[:, 1]], axis=1)
    probability = scorer.match(params, encoded, pairs).reshape(-1, 2) if match else None
    return FoilScores(cosine.reshape(-1, 2), probability)


def _accuracy(scores: np.ndarray) -> float:
    true, foil = scores.T
    return 100 * float(np.mean(true > foil))
