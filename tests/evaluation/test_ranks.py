"""Ranks, candidates and recall against sorted lists, with ties and NaN."""

import numpy as np
import pytest

from r2d2_jax.evaluation.ranks import NEVER, best_ranks, hits_of, recalls_of, reranked_ranks, top_candidates


def test_one_of_several_answers_is_enough() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]])
    assert best_ranks(scores, np.array([[True, True, False], [False, False, True]])).tolist() == [0, 0]
    assert best_ranks(scores, np.array([[False, True, True], [True, True, False]])).tolist() == [1, 1]


def test_nan_is_never_found() -> None:
    """Even where there are fewer candidates than the cut-off; and what has no score may be better than any answer."""
    nan = np.nan
    scores = np.array([[nan, 0.1, 0.2], [0.9, nan, 0.1], [nan, nan, nan], [nan, 0.5, 0.4], [-np.inf, 0.5, 0.4]])
    positive = np.array([[True, False, False]] * 3 + [[True, True, False]] + [[True, False, False]])
    assert best_ranks(scores, positive).tolist() == [NEVER, 1, NEVER, 0, 2]


def test_top_candidates() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.9], [0.0, -1.0, 2.0, 1.0]])
    nothing = np.zeros((2, 4), bool)
    assert top_candidates(scores, nothing, 3).tolist() == [[1, 3, 2], [2, 3, 0]]
    assert top_candidates(scores, nothing, 9).tolist() == [[1, 3, 2, 0], [2, 3, 0, 1]]


def test_an_answer_is_the_last_of_equal_candidates_and_of_nan() -> None:
    scores = np.array([[0.5, 0.5, np.nan, 0.5, -np.inf]])
    positive = np.array([[True, False, True, False, True]])
    assert top_candidates(scores, positive, 2).tolist() == [[1, 3]]
    assert top_candidates(scores, positive, 5).tolist() == [[1, 3, 0, 4, 2]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 7, 49, 50, 99])
def test_candidates_are_those_of_a_full_sort(seed: int, count: int) -> None:
    """With many ties, both zeros, infinities and NaN."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=(20, 50)), seed % 3).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = rng.choice([0.0, -0.0, np.nan, np.inf, -np.inf])
    scores[0], positive = -0.0, rng.random(scores.shape) < 0.3
    scores[0, ::2] = 0.0
    expected = np.lexsort((positive, -scores))[:, :count]
    assert top_candidates(scores, positive, count).tolist() == expected.tolist()


def test_ranks_after_reranking() -> None:
    """Of five columns, the best three by cosine are 1, 2, 4, and by the sum 4, 2, 1; then 3 and 0 as before."""
    cosine = np.array([0.1, 0.9, 0.5, 0.3, 0.4], np.float32)
    candidates, probability = np.array([1, 2, 4]), np.array([0.0, 0.5, 0.75], np.float32)
    answers = np.equal.outer(np.arange(5), candidates)
    dual = best_ranks(np.tile(cosine, (5, 1)), np.eye(5, dtype=bool))
    assert dual.tolist() == [4, 0, 1, 3, 2]
    assert reranked_ranks(np.tile(cosine[candidates] + probability, (5, 1)), answers, dual).tolist() == [4, 2, 1, 3, 0]


def test_recalls_by_hand() -> None:
    found = recalls_of({"i2t": np.array([0, 4, 9, NEVER]), "t2i": np.array([0, 0])})
    assert [found[f"i2t_{name}"] for name in ("r1", "r5", "r10", "mean")] == [25.0, 50.0, 75.0, 50.0]
    assert (found["t2i_mean"], found["mean"], found["r10"]) == (100.0, 75.0, 87.5)
    alone = recalls_of({"t2i": np.array([0, 7])})
    assert alone == {"t2i_r1": 50.0, "t2i_r5": 50.0, "t2i_r10": 100.0, "t2i_mean": 200 / 3, "mean": 200 / 3}
    assert hits_of({"t2i": np.array([0, 7])})["t2i_r5"].tolist() == [True, False]
