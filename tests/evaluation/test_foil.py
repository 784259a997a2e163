"""Choosing between caption and foil: counts, ties, and splits that are none."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.foil import check_foil_split, evaluate_foils
from r2d2_jax.evaluation.scorer import EncodedSplit

NOTHING = np.zeros((0, 0))


def pairs_of(caption_image: np.ndarray | list[int]) -> np.ndarray:
    return np.stack([caption_image, np.arange(len(caption_image))], axis=1)


def encoded(cosines: list[tuple[float, float]]) -> EncodedSplit:
    """Images whose true caption and foil have these cosines."""
    text = np.array([(value, np.sqrt(1 - value**2)) for pair in cosines for value in pair])
    image = np.tile([1.0, 0.0], (len(cosines), 1))
    return EncodedSplit(NOTHING, image, NOTHING, text, NOTHING, pairs_of(np.repeat(np.arange(len(cosines)), 2)))


class FakeScorer:
    """Match probabilities, given in the order of the captions."""

    def __init__(self, probability: list[float]) -> None:
        self.probability = np.array(probability)

    def match(self, params: Any, split: EncodedSplit, pairs: np.ndarray) -> np.ndarray:
        assert pairs[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        return self.probability[pairs[:, 1]]


def test_each_way_of_choosing() -> None:
    """Cosines: hit, miss, hit, tie. Match: miss, hit, tie, tie. Sum: miss, hit, hit, tie."""
    split = encoded([(0.6, 0.5), (0.1, 0.4), (0.3, 0.2), (0.5, 0.5)])
    scorer: Any = FakeScorer([0.1, 0.9, 0.9, 0.1, 0.5, 0.5, 0.7, 0.7])
    report = evaluate_foils(scorer, {}, split, rerank=True)
    assert (report.dual, report.match, report.reranked) == (50.0, 25.0, 50.0)


def test_dual_alone() -> None:
    scorer: Any = None
    report = evaluate_foils(scorer, {}, encoded([(0.6, 0.5), (0.7, 0.4), (0.2, 0.3)]), rerank=False)
    assert report.dual == pytest.approx(200 / 3)
    assert (report.match, report.reranked) == (None, None)


def test_a_tie_is_no_hit() -> None:
    scorer: Any = FakeScorer([0.5] * 8)
    report = evaluate_foils(scorer, {}, encoded([(0.5, 0.5)] * 4), rerank=True)
    assert (report.dual, report.match, report.reranked) == (0.0, 0.0, 0.0)


def test_nan_is_no_hit() -> None:
    """On either side, and alone or in the sum with a cosine that is right."""
    scorer: Any = FakeScorer([np.nan, 0.1, 0.9, np.nan, np.nan, np.nan, 0.9, 0.1])
    report = evaluate_foils(scorer, {}, encoded([(0.6, 0.5)] * 3 + [(np.nan, np.nan)]), rerank=True)
    assert (report.dual, report.match, report.reranked) == (75.0, 25.0, 0.0)


@pytest.mark.parametrize(
    "captions, image, count", [([0, 0, 1], "b", 1), ([0, 0, 1, 1, 1], "b", 3), ([0, 1, 1], "a", 1), ([1, 1], "a", 0)]
)
def test_a_split_that_is_no_foil_split(captions: list[int], image: str, count: int) -> None:
    split: Any = SimpleNamespace(pairs=pairs_of(captions), num_images=2, image_ids=["a", "b"])
    message = (
        rf"the foil split's record '{image}' has {count} caption\(s\); expected exactly two: the true caption and its "
        r"foil. Prepare the split again or set data.foil_split"
    )
    with pytest.raises(UserError, match=message):
        check_foil_split(split)


def test_a_foil_split() -> None:
    split: Any = SimpleNamespace(pairs=pairs_of([0, 0, 1, 1]), num_images=2, image_ids=["a", "b"])
    check_foil_split(split)


def test_captions_of_several_images_are_no_foils() -> None:
    pairs = np.array([[0, 0], [0, 1], [1, 1], [1, 2]])
    split: Any = SimpleNamespace(pairs=pairs, num_images=2, image_ids=["a", "b"], captions=["红球", "蓝球", "黑狗"])
    with pytest.raises(UserError, match="caption '蓝球' belongs to several images by its text_id"):
        check_foil_split(split)


def test_captions_that_lie_apart() -> None:
    """One-caption records of one image: image 0 has texts 0 and 2, image 1 texts 1 and 3; image 1 prefers its foil."""
    text = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    pairs = np.array([[0, 0], [0, 2], [1, 1], [1, 3]])
    split = EncodedSplit(NOTHING, np.tile([1.0, 0.0], (2, 1)), NOTHING, text, NOTHING, pairs)
    scorer: Any = None
    assert evaluate_foils(scorer, {}, split, rerank=False).dual == 50.0
