"""Recalls, chance and re-ranking against naive loops, with several captions an image, ties and few candidates."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from r2d2_jax.evaluation.retrieval import (
    CUTOFFS,
    NEVER,
    best_ranks,
    chance_recalls,
    evaluate_retrieval,
    recalls,
    reranked_ranks,
    top_candidates,
)
from r2d2_jax.evaluation.scorer import EncodedSplit


def naive_recalls(scores: np.ndarray, caption_image: np.ndarray) -> dict[str, float]:
    """A query is a hit at k if fewer than k wrong candidates score as high as its best right one.

    An image that no caption belongs to asks for nothing, but is a candidate.
    """
    result: dict[str, float] = {}
    for way, rows in (("i2t", scores), ("t2i", scores.T)):
        for cutoff in CUTOFFS:
            hits, queries = 0, 0
            for query, row in enumerate(rows):
                if way == "i2t" and query not in caption_image:
                    continue
                queries += 1
                right = [
                    (caption_image[c] == query if way == "i2t" else caption_image[query] == c) for c in range(len(row))
                ]
                best = max(score for score, good in zip(row, right, strict=True) if good)
                before = sum(score >= best and not good for score, good in zip(row, right, strict=True))
                hits += before < cutoff
            result[f"{way}_r{cutoff}"] = 100 * hits / queries
        result[f"{way}_mean"] = sum(result[f"{way}_r{cutoff}"] for cutoff in CUTOFFS) / 3
    result["mean"] = (result["i2t_mean"] + result["t2i_mean"]) / 2
    result["r10"] = (result["i2t_r10"] + result["t2i_r10"]) / 2
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_recalls_equal_the_naive_count(seed: int, decimals: int) -> None:
    """Several captions an image, in any order; few decimals make many ties."""
    rng = np.random.default_rng(seed)
    caption_image = rng.permutation(np.concatenate([np.arange(15), rng.integers(0, 15, 25)]))
    scores = np.round(rng.normal(size=(15, 40)), decimals)
    assert recalls(scores, caption_image) == pytest.approx(naive_recalls(scores, caption_image))


@pytest.mark.parametrize("seed", range(4))
def test_recalls_of_a_gallery_with_images_that_nobody_asks_for(seed: int) -> None:
    """20 images, of which 5 to 15 have captions; the rest make text to image harder and image to text no easier."""
    rng = np.random.default_rng(seed)
    caption_image = rng.choice(20, 5 + 3 * seed, replace=False)[rng.integers(0, 5 + 3 * seed, 30)]
    assert len(np.unique(caption_image)) < 20
    scores = np.round(rng.normal(size=(20, 30)), 1)
    found = recalls(scores, caption_image)
    assert found == pytest.approx(naive_recalls(scores, caption_image))
    asking, without = np.unique(caption_image, return_inverse=True)
    alone = recalls(scores[asking], without)
    assert all(found[f"i2t_r{cutoff}"] == alone[f"i2t_r{cutoff}"] for cutoff in CUTOFFS)
    assert all(found[f"t2i_r{cutoff}"] <= alone[f"t2i_r{cutoff}"] for cutoff in CUTOFFS)


def test_a_gallery_by_hand() -> None:
    """Image 1 has no caption and scores highest for both texts: each is found at the second place, not the first."""
    scores = np.array([[0.8, 0.1], [0.9, 0.9], [0.1, 0.7]])
    found = recalls(scores, np.array([0, 2]))
    assert (found["i2t_r1"], found["t2i_r1"], found["t2i_r5"]) == (100.0, 0.0, 100.0)


def test_perfect_and_worst() -> None:
    caption_image = np.repeat(np.arange(20), 2)
    truth = (np.arange(20)[:, None] == caption_image).astype(float)
    assert set(recalls(truth, caption_image).values()) == {100.0}
    assert set(recalls(-truth, caption_image).values()) == {0.0}


def test_a_model_that_scores_everything_alike_finds_nothing() -> None:
    assert set(recalls(np.zeros((20, 20)), np.arange(20)).values()) == {0.0}


def test_one_of_several_captions_is_enough() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]])
    assert best_ranks(scores, np.array([[True, True, False], [False, False, True]])).tolist() == [0, 0]
    assert best_ranks(scores, np.array([[False, True, True], [True, True, False]])).tolist() == [1, 1]


# --- chance ---------------------------------------------------------------------------------------------------------


def closed_form(caption_image: np.ndarray, images: int) -> dict[str, float]:
    """1 - C(c - p, k) / C(c, k) for each query with p right ones among c candidates."""
    texts = len(caption_image)
    result: dict[str, float] = {}
    asking = sorted(set(caption_image.tolist()))
    for way, queries in (("i2t", [(texts, int((caption_image == i).sum())) for i in asking]),
                         ("t2i", [(images, 1)] * texts)):  # fmt: skip
        for k in CUTOFFS:
            chances = [1 - math.comb(c - p, min(k, c)) / math.comb(c, min(k, c)) for c, p in queries]
            result[f"{way}_r{k}"] = 100 * sum(chances) / len(chances)
    return result


@pytest.mark.parametrize("images, captions", [(1, 1), (3, 2), (8, 5), (30, 1), (200, 5)])
@pytest.mark.parametrize("gallery", [0, 7])
def test_chance_equals_the_closed_form(images: int, captions: int, gallery: int) -> None:
    """`gallery` images more have no caption."""
    caption_image = np.repeat(np.arange(images), captions)
    images += gallery
    found = chance_recalls(caption_image, images)
    for name, value in closed_form(caption_image, images).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert found["mean"] == pytest.approx(np.mean([found[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in CUTOFFS]))
    assert found["r10"] == pytest.approx((found["i2t_r10"] + found["t2i_r10"]) / 2)


def test_chance_equals_a_simulation() -> None:
    """With 5 of 30 images in the gallery alone."""
    rng = np.random.default_rng(0)
    caption_image = np.concatenate([np.arange(25), rng.integers(0, 25, 20)])
    drawn = [recalls(rng.random((30, 45)), caption_image) for _ in range(400)]
    for name, value in chance_recalls(caption_image, 30).items():
        assert np.mean([draw[name] for draw in drawn]) == pytest.approx(value, abs=1.0), name


# --- re-ranking -----------------------------------------------------------------------------------------------------


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


def test_ranks_after_reranking() -> None:
    """Of five columns, the best three by cosine are 1, 2, 4, and by the sum 4, 2, 1; then 3 and 0 as before."""
    scores = np.tile(np.array([0.1, 0.9, 0.5, 0.3, 0.4], np.float32), (5, 1))
    candidates, probability = np.tile([1, 2, 4], (5, 1)), np.tile(np.array([0.0, 0.5, 0.75], np.float32), (5, 1))
    ranks = reranked_ranks(scores, np.eye(5, dtype=bool), candidates, probability)
    assert ranks.tolist() == [4, 2, 1, 3, 0]


class FakeScorer:
    """Match probabilities from a table; remembers what it was asked."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.asked: list[tuple[int, int]] = []

    def match(self, params: Any, encoded: EncodedSplit, pairs: np.ndarray) -> np.ndarray:
        self.asked += [(int(image), int(text)) for image, text in pairs]
        return self.table[pairs[:, 0], pairs[:, 1]]


def split_of(seed: int, images: int = 12, texts: int = 30, gallery: int = 0) -> tuple[EncodedSplit, np.ndarray]:
    """Images and texts at random and their match probabilities; `gallery` more images, in any place, have no text."""
    rng = np.random.default_rng(seed)
    embeds = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in
              (rng.normal(size=(images + gallery, 4)), rng.normal(size=(texts, 4)))]  # fmt: skip
    place = rng.permutation(images + gallery)[:images]
    caption_image = place[rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, texts - images)]))]
    nothing = np.zeros((0, 0))
    split = EncodedSplit(nothing, embeds[0], nothing, embeds[1], nothing, caption_image)
    return split, rng.random((images + gallery, texts))


def naive_reranked(
    cosine: np.ndarray, table: np.ndarray, caption_image: np.ndarray, rerank: int
) -> tuple[dict[str, float], set[tuple[int, int]]]:
    """Recall in lists that are written out: candidates by cosine + match, then the others by cosine; and the pairs.

    Of equal scores a wrong answer stands first.
    """
    result: dict[str, float] = {}
    pairs: set[tuple[int, int]] = set()
    for way in ("i2t", "t2i"):
        queries = sorted(set(caption_image.tolist())) if way == "i2t" else range(len(caption_image))
        firsts = []
        for query in queries:
            pair = (lambda c, q=query: (q, c)) if way == "i2t" else (lambda c, q=query: (c, q))
            right = lambda c, pair=pair: caption_image[pair(c)[1]] == pair(c)[0]  # noqa: E731
            columns = range(cosine.shape[1] if way == "i2t" else cosine.shape[0])
            dual = sorted(columns, key=lambda c: (-cosine[pair(c)], right(c)))
            best, rest = dual[:rerank], dual[rerank:]
            pairs |= {pair(c) for c in best}
            whole = sorted(best, key=lambda c: (-(cosine[pair(c)] + table[pair(c)]), right(c))) + rest
            firsts.append([right(c) for c in whole].index(True))
        for cutoff in CUTOFFS:
            result[f"{way}_r{cutoff}"] = 100 * float(np.mean([first < cutoff for first in firsts]))
    return result, pairs


@pytest.mark.parametrize("rerank", [1, 4, 12, 30, 99])
@pytest.mark.parametrize("gallery", [0, 6])
def test_both_directions_rerank_their_own_candidates(rerank: int, gallery: int) -> None:
    """A query's other right answers are not in the way of its first, whatever their number."""
    encoded, table = split_of(rerank, gallery=gallery)
    scorer: Any = FakeScorer(table)
    report = evaluate_retrieval(scorer, {}, encoded, rerank)
    cosine = encoded.image_embed @ encoded.text_embed.T
    assert report.dual == pytest.approx(naive_recalls(cosine, encoded.caption_image))
    assert report.chance == chance_recalls(encoded.caption_image, 12 + gallery)
    expected, wanted = naive_reranked(cosine, table, encoded.caption_image, rerank)
    assert report.reranked is not None
    assert {name: report.reranked[name] for name in expected} == pytest.approx(expected)
    for way in ("i2t", "t2i"):
        assert report.reranked[f"{way}_mean"] == pytest.approx(np.mean([expected[f"{way}_r{k}"] for k in CUTOFFS]))
    assert report.reranked["mean"] == pytest.approx(np.mean(list(expected.values())))
    assert report.reranked["r10"] == pytest.approx((expected["i2t_r10"] + expected["t2i_r10"]) / 2)
    assert report.reranked.keys() == report.dual.keys() == report.chance.keys()
    assert sorted(scorer.asked) == sorted(wanted), "each pair is asked for once"


@pytest.mark.parametrize("rerank", [1, 4, 7])
def test_recall_beyond_the_candidates_is_that_of_the_list(rerank: int) -> None:
    """Where the cross encoders know nothing, R@10 of 4 candidates is what the dual encoder finds, not below chance."""
    encoded, table = split_of(3, images=40, texts=80)
    near = encoded.image_embed[encoded.caption_image] + 0.7 * encoded.text_embed
    encoded = dataclasses.replace(encoded, text_embed=near / np.linalg.norm(near, axis=1, keepdims=True))
    scorer: Any = FakeScorer(np.zeros_like(table))
    report = evaluate_retrieval(scorer, {}, encoded, rerank)
    assert report.reranked is not None
    for name in ("i2t_r10", "t2i_r10", "r10"):
        assert report.reranked[name] == report.dual[name] > report.chance[name]


@pytest.mark.parametrize("rerank", [1, 4, 99])
def test_a_model_that_scores_everything_alike_finds_nothing_re_ranked(rerank: int) -> None:
    embed, nothing = np.ones((20, 2)) / np.sqrt(2), np.zeros((0, 0))
    encoded = EncodedSplit(nothing, embed, nothing, embed, nothing, np.arange(20))
    scorer: Any = FakeScorer(np.full((20, 20), 0.5))
    report = evaluate_retrieval(scorer, {}, encoded, rerank)
    assert report.reranked is not None
    assert set(report.reranked.values()) == {0.0}


@pytest.mark.parametrize("rerank", [1, 5])
def test_one_image_with_its_captions(rerank: int) -> None:
    nothing = np.zeros((0, 0))
    encoded = EncodedSplit(nothing, np.eye(2)[:1], nothing, np.eye(2)[[0, 1, 0]], nothing, np.zeros(3, int))
    scorer: Any = FakeScorer(np.full((1, 3), 0.5))
    report = evaluate_retrieval(scorer, {}, encoded, rerank)
    assert report.reranked is not None
    assert set(report.reranked.values()) == set(report.dual.values()) == {100.0}, "there is no wrong answer"


def test_a_right_answer_below_the_candidates_is_no_hit() -> None:
    """With one candidate, the wrong one, the right one cannot win, whatever its match probability."""
    embed = np.array([[1.0, 0.0], [0.0, 1.0]])
    nothing = np.zeros((0, 0))
    encoded = EncodedSplit(nothing, embed, nothing, embed[::-1], nothing, np.array([0, 1]))
    scorer: Any = FakeScorer(np.eye(2))
    report = evaluate_retrieval(scorer, {}, encoded, 1)
    assert report.reranked is not None
    assert (report.reranked["i2t_r1"], report.reranked["t2i_r1"]) == (0.0, 0.0)


def test_without_reranking_nothing_is_scored() -> None:
    encoded, table = split_of(0)
    scorer: Any = FakeScorer(table)
    assert evaluate_retrieval(scorer, {}, encoded, 0).reranked is None
    assert scorer.asked == []


# --- NaN ------------------------------------------------------------------------------------------------------------


def test_nan_is_never_found() -> None:
    """Even where there are fewer candidates than the cut-off; and what has no score may be better than any answer."""
    nan = np.nan
    scores = np.array([[nan, 0.1, 0.2], [0.9, nan, 0.1], [nan, nan, nan], [nan, 0.5, 0.4], [-np.inf, 0.5, 0.4]])
    positive = np.array([[True, False, False]] * 3 + [[True, True, False]] + [[True, False, False]])
    assert best_ranks(scores, positive).tolist() == [NEVER, 1, NEVER, 0, 2]


@pytest.mark.parametrize("rerank", [0, 2, 20])
def test_a_model_of_nan_has_no_recall(rerank: int) -> None:
    embed, nothing = np.full((20, 4), np.nan), np.zeros((0, 0))
    encoded = EncodedSplit(nothing, embed, nothing, embed, nothing, np.arange(20))
    scorer: Any = FakeScorer(np.full((20, 20), np.nan))
    report = evaluate_retrieval(scorer, {}, encoded, rerank)
    assert set(report.dual.values()) == {0.0}
    assert report.reranked is None if rerank == 0 else set((report.reranked or {}).values()) == {0.0}


def test_matches_of_nan_are_no_hits() -> None:
    """The cosines are right; the cross encoders give NaN for every candidate."""
    encoded, table = split_of(0)
    scorer: Any = FakeScorer(np.full_like(table, np.nan))
    report = evaluate_retrieval(scorer, {}, encoded, 99)
    assert report.reranked is not None
    assert set(report.reranked.values()) == {0.0}
    assert report.dual["mean"] > 0
