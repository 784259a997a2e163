"""Retrieval against lists that are written out: every form of ground truth, ties, few candidates, NaN."""

from typing import Any

import numpy as np
import pytest
from encoder_cases import MODEL
from retrieval_cases import (
    FORMS,
    FakeGallery,
    SmallSplit,
    evaluated,
    naive_ranks,
    naive_recalls,
    naive_reranked_ranks,
    one_device,
    random_scores,
    random_truth,
    report,
    right,
)

from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.ground_truth import DIRECTIONS, GroundTruth
from r2d2_jax.evaluation.retrieval import RetrievalCounts, RetrievalSettings, chance_recalls, evaluate_retrieval
from r2d2_jax.evaluation.scorer import Scorer


def both_ways(scores: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(DIRECTIONS, (scores, scores.T), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("rerank", [1, 6, 99])
def test_every_stage_equals_the_naive_count(form: str, seed: int, decimals: int, rerank: int) -> None:
    """Few decimals make many ties; a query's other right answers are never in the way of its first."""
    truth = random_truth(form, seed)
    cosine, table = random_scores(truth, seed, decimals), random_scores(truth, seed + 1, decimals)
    gallery = FakeGallery(cosine, table)
    found = report(gallery, truth, RetrievalSettings(rerank=rerank))
    matrix, rows, added = both_ways(right(truth)), both_ways(cosine), both_ways(table)
    assert found.dual == pytest.approx(naive_recalls({way: naive_ranks(rows[way], matrix[way]) for way in rows}))
    for stage, alone in ((found.cross, True), (found.reranked, False)):
        ranks = {way: naive_reranked_ranks(rows[way], added[way], matrix[way], rerank, alone=alone) for way in rows}
        assert stage == pytest.approx(naive_recalls(ranks))
    assert found.chance == chance_recalls(truth)
    assert found.dual.keys() == found.chance.keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_perfect_scorer_finds_everything(form: str) -> None:
    truth = random_truth(form, 0)
    perfect = right(truth).astype(np.float32)
    found = report(FakeGallery(perfect, perfect), truth, RetrievalSettings(rerank=3, intervals=True))
    for figures in (found.dual, found.cross, found.reranked):
        assert set((figures or {}).values()) == {100.0}
    assert {at for stage in found.intervals.values() for at in stage.values()} == {(100.0, 100.0)}
    worst = report(FakeGallery(-perfect, -perfect), truth, RetrievalSettings())
    assert worst.dual["i2t_r1"] == worst.dual["t2i_r1"] == 0.0


def test_queries_with_several_right_images_and_images_in_several_samples() -> None:
    """8 queries with 3 images each; ten images whose captions came in five samples each."""
    for images, texts, pairs in (
        (24, 8, np.stack([np.arange(24), np.arange(24) // 3], axis=1)),
        (10, 50, np.stack([np.arange(50) % 10, np.arange(50)], axis=1)),
    ):
        truth = GroundTruth(images, texts, pairs)
        perfect = right(truth).astype(np.float32)
        assert set(report(FakeGallery(perfect), truth, RetrievalSettings()).dual.values()) == {100.0}
    assert chance_recalls(truth)["i2t_r1"] == pytest.approx(10.0)


def test_repeated_captions_can_be_right() -> None:
    """Three images with the same caption: a scorer that knows the text alone is right only if they share it."""
    truth, texts = GroundTruth(3, 3, np.repeat(np.arange(3), 2).reshape(3, 2)), ["红", "红", "蓝"]
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert report(FakeGallery(scores), truth, RetrievalSettings()).dual["i2t_r1"] == pytest.approx(100 / 3)
    shared = report(FakeGallery(scores), truth.with_equal_texts_shared(texts), RetrievalSettings(intervals=True))
    assert set(shared.dual.values()) == {100.0}
    assert shared.chance["i2t_r1"] == pytest.approx(100 * (2 + 2 + 1) / 9)


def test_one_direction_alone() -> None:
    truth = random_truth("both, and galleries", 0)
    gallery = FakeGallery(random_scores(truth, 0), random_scores(truth, 1))
    both = report(gallery, truth, RetrievalSettings(rerank=4, intervals=True))
    alone = report(gallery, truth, RetrievalSettings(rerank=4, intervals=True, directions=("t2i",)))
    assert alone.dual == {name: both.dual[name] for name in alone.dual if name != "mean"} | {
        "mean": both.dual["t2i_mean"]
    }
    assert alone.reranked is not None
    assert alone.reranked["mean"] == (both.reranked or {})["t2i_mean"]
    assert alone.intervals["cross"].keys() == alone.chance.keys() == alone.dual.keys()


def test_candidates_are_those_of_each_direction() -> None:
    truth = random_truth("several captions", 2)
    gallery = FakeGallery(random_scores(truth, 0), random_scores(truth, 1))
    report(gallery, truth, RetrievalSettings(rerank=3))
    best = {(image, int(text)) for image, row in enumerate(gallery.cosine) for text in np.argsort(-row)[:3]}
    best |= {(int(image), text) for text, row in enumerate(gallery.cosine.T) for image in np.argsort(-row)[:3]}
    assert set(gallery.asked) == best


@pytest.mark.parametrize("rerank", [1, 4, 7])
def test_recall_beyond_the_candidates_is_that_of_the_list(rerank: int) -> None:
    """Where the cross encoders know nothing, R@10 of 4 candidates is what the dual encoder finds, not below chance."""
    truth = random_truth("several captions", 3, 40, 80)
    cosine = random_scores(truth, 3) + right(truth).astype(np.float32) / 2
    found = report(FakeGallery(cosine, np.zeros_like(cosine)), truth, RetrievalSettings(rerank=rerank))
    assert found.reranked is not None
    for name in ("i2t_r10", "t2i_r10", "r10"):
        assert found.reranked[name] == found.dual[name] > found.chance[name]


@pytest.mark.parametrize("value", [0.5, np.nan])
@pytest.mark.parametrize("rerank", [0, 1, 4, 99])
def test_a_model_that_scores_everything_alike_finds_nothing(value: float, rerank: int) -> None:
    truth = random_truth("one caption", 0, 20)
    same = np.full((20, 20), value, np.float32)
    found = report(FakeGallery(same, same), truth, RetrievalSettings(rerank=rerank))
    assert set(found.dual.values()) == {0.0}
    for figures in (found.cross, found.reranked):
        assert set(figures.values()) == {0.0} if rerank and figures else (figures is None and not rerank)


def test_matches_of_nan_are_no_hits() -> None:
    """The cosines are right; the cross encoders give NaN for every candidate."""
    truth = random_truth("several captions", 0)
    perfect = right(truth).astype(np.float32)
    found = report(FakeGallery(perfect, np.full_like(perfect, np.nan)), truth, RetrievalSettings(rerank=99))
    assert set((found.reranked or {}).values()) == set((found.cross or {}).values()) == {0.0}
    assert found.dual["mean"] == 100.0


@pytest.mark.parametrize("rerank", [1, 5])
def test_one_image_with_its_captions(rerank: int) -> None:
    truth = GroundTruth(1, 3, np.array([[0, 0], [0, 1], [0, 2]]))
    found = report(FakeGallery(np.eye(3)[:1], np.full((1, 3), 0.5)), truth, RetrievalSettings(rerank=rerank))
    assert set((found.reranked or {}).values()) == set(found.dual.values()) == {100.0}, "there is no wrong answer"


def test_what_is_counted() -> None:
    found = evaluated(one_device())
    split = SmallSplit()
    asked = len(np.unique(split.pairs[:, 0]))
    assert found.counts == RetrievalCounts(21, 37, asked, 37, 0, found.counts.repeated_texts if found.counts else -1)
    assert found.counts.repeated_texts > 0
    shared = evaluated(one_device(), same_text_is_right=True)
    assert shared.counts is not None
    assert shared.counts.texts_with_several_images == shared.counts.repeated_texts == found.counts.repeated_texts
    assert shared.dual["t2i_r10"] >= found.dual["t2i_r10"]


def test_a_model_without_cross_encoders_is_not_asked_to_re_rank() -> None:
    scorer: Any = Scorer(MODEL.module.clone(matching=False), one_device(), 8)
    split: Any = SmallSplit()
    with pytest.raises(UserError, match=r"5 candidates are to be re-ranked, but the model has no cross encoders"):
        evaluate_retrieval(scorer, MODEL.params, split, RetrievalSettings(rerank=5))
