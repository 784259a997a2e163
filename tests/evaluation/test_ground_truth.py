"""Ground truth in blocks and its chance, against whole matrices and simulations."""

import math

import numpy as np
import pytest
from retrieval_cases import FORMS, random_truth, right

from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.ground_truth import DIRECTIONS, GroundTruth, texts_repeated_under_other_images
from r2d2_jax.evaluation.ranks import CUTOFFS, best_ranks, recalls_of
from r2d2_jax.evaluation.retrieval import chance_recalls


def matrix_of(truth: GroundTruth) -> np.ndarray:
    """bool [i t], put together of blocks."""
    return truth.positives("i2t", np.arange(truth.num_images))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_rows_of_the_matrix(form: str, seed: int) -> None:
    truth = random_truth(form, seed)
    for direction, matrix in zip(DIRECTIONS, (right(truth), right(truth).T), strict=True):
        queries = truth.queries(direction)
        assert queries.tolist() == np.flatnonzero(matrix.any(axis=1)).tolist()
        chosen = np.random.default_rng(seed).permutation(queries)[:6]
        np.testing.assert_array_equal(truth.positives(direction, chosen), matrix[chosen])
        assert truth.candidates(direction) == matrix.shape[1]
    asked = truth.queries("t2i")
    assert truth.first_images().tolist() == right(truth).argmax(axis=0)[asked].tolist()
    assert truth.texts_with_several_images == np.sum(right(truth).sum(axis=0) > 1)


def test_a_pair_that_is_there_twice_counts_once() -> None:
    truth = GroundTruth(2, 2, np.array([[0, 1], [0, 1], [1, 1]]))
    assert truth.texts_with_several_images == 1
    assert truth.hit_chances("t2i", 1).tolist() == [1.0]
    assert truth.hit_chances("i2t", 1).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_texts_of_equal_characters_share_their_images(form: str, seed: int) -> None:
    truth = random_truth(form, seed)
    texts = [str(number) for number in np.random.default_rng(seed).integers(0, 8, truth.num_texts)]
    shared, before = truth.with_equal_texts_shared(texts), right(truth)
    same = np.array([[one == other for other in texts] for one in texts])
    expected = (before.astype(int) @ same.astype(int)) > 0
    np.testing.assert_array_equal(matrix_of(shared), expected)
    np.testing.assert_array_equal(shared.positives("t2i", np.arange(truth.num_texts)), expected.T)
    assert shared.queries("t2i").tolist() == np.flatnonzero(expected.any(axis=0)).tolist()
    assert shared.first_images().tolist() == expected.argmax(axis=0)[expected.any(axis=0)].tolist()
    assert shared.texts_with_several_images == np.sum(expected.sum(axis=0) > 1)
    gained = (expected & ~before).any(axis=0) & before.any(axis=0)
    assert texts_repeated_under_other_images(truth, texts) == gained.sum()
    for direction, matrix in zip(DIRECTIONS, (expected, expected.T), strict=True):
        chances = shared.hit_chances(direction, 1)
        np.testing.assert_allclose(chances, matrix[matrix.any(axis=1)].mean(axis=1), atol=1e-12)


def test_texts_of_one_image_that_are_equal_are_no_repeated_texts() -> None:
    truth = GroundTruth(2, 3, np.array([[0, 0], [0, 1], [1, 2]]))
    assert texts_repeated_under_other_images(truth, ["红", "红", "蓝"]) == 0
    assert texts_repeated_under_other_images(truth, ["红", "蓝", "蓝"]) == 2


def test_nothing_with_a_partner_is_one_message() -> None:
    with pytest.raises(UserError, match="none of the 3 images and 2 texts has a partner"):
        GroundTruth(3, 2, np.zeros((0, 2), np.int32))


def test_nothing_of_the_size_of_the_matrix_is_held() -> None:
    """300,000 x 300,000 would be 90 GB."""
    count = 300_000
    truth = GroundTruth(count, count, np.stack([np.arange(count)[::-1], np.arange(count)], axis=1))
    assert np.argwhere(truth.positives("t2i", np.array([5, 7]))).tolist() == [[0, count - 6], [1, count - 8]]
    assert truth.hit_chances("i2t", 10).mean() == pytest.approx(10 / count)


# --- chance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_chance_equals_the_closed_form(form: str) -> None:
    """1 - C(c - p, k) / C(c, k) for each query with p right ones among c candidates."""
    truth = random_truth(form, 0)
    found = chance_recalls(truth)
    for way, matrix in zip(DIRECTIONS, (right(truth), right(truth).T), strict=True):
        for k in CUTOFFS:
            queries = [(len(row), int(row.sum())) for row in matrix if row.any()]
            chances = [1 - math.comb(c - p, min(k, c)) / math.comb(c, min(k, c)) for c, p in queries]
            assert found[f"{way}_r{k}"] == pytest.approx(100 * sum(chances) / len(chances), abs=1e-9)
    assert found["mean"] == pytest.approx(np.mean([found[f"{way}_r{k}"] for way in DIRECTIONS for k in CUTOFFS]))
    assert found["r10"] == pytest.approx((found["i2t_r10"] + found["t2i_r10"]) / 2)
    assert chance_recalls(truth, ("t2i",)).keys() == {"t2i_r1", "t2i_r5", "t2i_r10", "t2i_mean", "mean"}


@pytest.mark.parametrize("images, texts", [(1, 1), (2, 3), (8, 3)])
def test_chance_of_few_candidates(images: int, texts: int) -> None:
    truth = GroundTruth(images, texts, np.stack([np.arange(texts) % images, np.arange(texts)], axis=1))
    found = chance_recalls(truth)
    assert found["t2i_r1"] == pytest.approx(100 / images)
    assert found["t2i_r10"] == found["i2t_r10"] == 100.0


def test_chance_equals_a_simulation() -> None:
    truth, rng = random_truth("both, and galleries", 1, 30, 45), np.random.default_rng(0)
    matrix = right(truth)
    drawn = []
    for _ in range(400):
        scores = rng.random(matrix.shape)
        both = zip(DIRECTIONS, ((scores, matrix), (scores.T, matrix.T)), strict=True)
        ranks = {way: best_ranks(rows[good.any(axis=1)], good[good.any(axis=1)]) for way, (rows, good) in both}
        drawn.append(recalls_of(ranks))
    for name, value in chance_recalls(truth).items():
        assert np.mean([draw[name] for draw in drawn]) == pytest.approx(value, abs=1.5), name
