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
    """Raises UserError unless every image has exactly two captions, the true one and the foil."""
    captions = np.bincount(split.caption_image, minlength=split.num_images)
    if np.any(captions != 2):
        image = int(np.argmax(captions != 2))
        raise UserError(
            f"the foil split's record {split.image_ids[image]!r} has {captions[image]} caption(s); expected exactly "
            'two: the true caption and its foil. Prepare the split again or set data.foil_split to ""'
        )


def evaluate_foils(scorer: Scorer, params: Params, encoded: EncodedSplit, *, rerank: bool) -> FoilReport:
    """Scores each image against its true caption and its foil.

    A tie is not a hit: a model that cannot tell the two apart scores below chance, never above it.

    Args:
        scorer: the compiled forwards.
        params: the model's parameters.
        encoded: a foil split: captions 2i and 2i + 1 are the true caption and the foil of image i.
        rerank: also score with the cross encoders; cosine + match probability as in retrieval, and match alone.
    """
    pairs = np.stack([encoded.caption_image, np.arange(len(encoded.caption_image))], axis=1)
    cosine = np.sum(encoded.image_embed[pairs[:, 0]] * encoded.text_embed, axis=1)
    if not rerank:
        return FoilReport(_accuracy(cosine), None, None)
    probability = scorer.match(params, encoded, pairs)
    return FoilReport(_accuracy(cosine), _accuracy(cosine + probability), _accuracy(probability))


def _accuracy(scores: np.ndarray) -> float:
    true, foil = scores.reshape(-1, 2).T
    return 100 * float(np.mean(true > foil))
