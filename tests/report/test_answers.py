"""What both stages answer to single queries, against the same in plain loops; which of them are shown."""

import numpy as np
import pytest
from retrieval_cases import FakeGallery, one_device, random_scores, random_truth, right

from r2d2_jax.evaluation.retrieval import RetrievalSettings, ranks_of
from r2d2_jax.report.answers import SHOWN, Answers, Stage, answers, changes, evenly, right_ones, wrong_ones


def table(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(7).random(shape).astype(np.float32)


@pytest.mark.parametrize("rerank", [0, 2, 9])
@pytest.mark.parametrize("form", ["several captions", "both, and galleries"])
def test_lists_and_ranks_are_those_of_plain_loops(form: str, rerank: int) -> None:
    truth = random_truth(form, seed=1)
    cosine = random_scores(truth, seed=2)
    gallery = FakeGallery(cosine, table(cosine.shape))
    settings = RetrievalSettings(rerank=rerank)
    found = answers(gallery, truth, settings, one_device(), most=10**6)
    ranks = ranks_of(FakeGallery(cosine, gallery.table), truth, settings, one_device())
    for direction in ("i2t", "t2i"):
        scores, match, is_right = (
            each if direction == "i2t" else each.T for each in (cosine, table(cosine.shape), right(truth))
        )
        mine = found[direction]
        assert mine.queries.tolist() == truth.queries(direction).tolist()
        np.testing.assert_array_equal(mine.dual.ranks, ranks["dual"][direction])
        for row, query in enumerate(mine.queries):
            by_cosine = np.argsort(-scores[query], kind="stable")
            expect(mine.dual, row, by_cosine[:SHOWN], scores[query], np.full(len(by_cosine), np.nan), is_right[query])
            if mine.reranked is None:
                assert not rerank
                continue
            best = by_cosine[:rerank]
            order = [*best[np.argsort(-(scores + match)[query, best], kind="stable")], *by_cosine[rerank:]]
            matched = np.where(np.isin(np.arange(len(by_cosine)), best), match[query], np.nan)
            expect(mine.reranked, row, np.array(order[:SHOWN]), scores[query], matched, is_right[query])
        if mine.reranked is not None:
            np.testing.assert_array_equal(mine.reranked.ranks, ranks["reranked"][direction])


def expect(
    stage: Stage, row: int, best: np.ndarray, cosine: np.ndarray, match: np.ndarray, is_right: np.ndarray
) -> None:
    np.testing.assert_array_equal(stage.best[row], best)
    np.testing.assert_array_equal(stage.right[row], is_right[best])
    np.testing.assert_array_equal(stage.cosine[row], cosine[best].astype(np.float32))
    np.testing.assert_array_equal(stage.match[row], match[best].astype(np.float32))


def test_no_more_queries_are_re_ranked_than_asked_for_and_the_others_stay_as_they_are() -> None:
    truth = random_truth("several captions", seed=1)
    cosine = random_scores(truth, seed=2)
    gallery = FakeGallery(cosine, table(cosine.shape))
    settings = RetrievalSettings(rerank=3)
    every = answers(gallery, truth, settings, one_device(), most=10**6)["t2i"]
    gallery.asked.clear()
    few = answers(gallery, truth, settings, one_device(), most=5)["t2i"]
    assert len(gallery.asked) == 2 * 5 * 3
    assert few.total == len(every.queries) == 40
    rows = evenly(40, 5)
    assert few.queries.tolist() == every.queries[rows].tolist() == [0, 10, 20, 29, 39]
    assert few.reranked is not None
    assert every.reranked is not None
    np.testing.assert_array_equal(few.reranked.best, every.reranked.best[rows])


def made_up(before: list[int], after: list[int] | None) -> Answers:
    def stage(ranks: list[int]) -> Stage:
        nothing = np.zeros((len(ranks), 0))
        return Stage(np.array(ranks), nothing, nothing, nothing, nothing)

    queries = np.arange(len(before))
    return Answers("t2i", queries, len(before), stage(before), stage(after) if after is not None else None)


def test_what_re_ranking_changed_is_counted() -> None:
    counted = changes(made_up([0, 0, 0, 3, 5, 2, 9], [0, 0, 4, 0, 1, 2, 10]))
    assert counted is not None
    assert (counted.queries, counted.right_before, counted.right_after) == (7, 3, 3)
    assert (counted.repaired, counted.broken, counted.nearer, counted.farther) == (1, 1, 2, 2)
    assert changes(made_up([0, 1], None)) is None


def test_examples_lie_at_even_distances_in_the_order_of_their_ranks() -> None:
    found = made_up([4, 0, 2, 0, 1, 9, 3], [0, 0, 0, 0, 1, 9, 3])
    assert right_ones(found, 2).tolist() == [1, 0]  # ranks before: 0 (first), 0, 2, 4 (last)
    assert right_ones(found, 9).tolist() == [1, 3, 2, 0]
    assert wrong_ones(found, 3).tolist() == [4, 6, 5]
    assert wrong_ones(made_up([0], None), 3).tolist() == []
