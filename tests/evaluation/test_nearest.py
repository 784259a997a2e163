"""Cosines in blocks: right, equal for equal rows wherever they lie, and never more than a block."""

import numpy as np
import pytest
from retrieval_cases import one_device, random_truth

from r2d2_jax.evaluation.nearest import QUERIES_PER_DEVICE, cosine_blocks, nearest
from r2d2_jax.evaluation.ranks import best_ranks


def unit(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    values = rng.normal(size=(rows, size))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("queries, candidates", [(1, 1), (QUERIES_PER_DEVICE, 128), (71, 300)])
def test_blocks_are_the_whole_product(queries: int, candidates: int) -> None:
    rng = np.random.default_rng(0)
    left, right = unit(rng, queries, 48), unit(rng, candidates, 48)
    blocks = list(cosine_blocks(left, right, one_device()))
    assert [rows.start for rows, _ in blocks] == list(range(0, queries, QUERIES_PER_DEVICE))
    assert max(len(block) for _, block in blocks) <= QUERIES_PER_DEVICE
    assert {block.dtype for _, block in blocks} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), left @ right.T, atol=1e-6)


@pytest.mark.parametrize("size", [7, 16, 768])
def test_equal_rows_have_equal_cosines_wherever_they_lie(size: int) -> None:
    """Otherwise a tie would be decided by the place of a candidate."""
    rng = np.random.default_rng(1)
    left, right = unit(rng, 45, size), unit(rng, 333, size)
    left[:], copies = left[:1], rng.permutation(333)[:100]
    right[copies] = right[0]
    cosine = np.concatenate([block for _, block in cosine_blocks(left, right, one_device())])
    assert len(np.unique(cosine[:, copies])) == 1


def test_what_is_kept_of_each_query() -> None:
    truth, rng = random_truth("both, and galleries", 0, 60, 90), np.random.default_rng(0)
    image, text = unit(rng, 60, 8), unit(rng, 90, 8)
    found = nearest("t2i", truth, image, text, 5, one_device())
    cosine, positive = text[found.queries] @ image.T, truth.positives("t2i", found.queries)
    assert found.queries.tolist() == truth.queries("t2i").tolist()
    assert found.ranks.tolist() == best_ranks(cosine, positive).tolist()
    np.testing.assert_array_equal(found.candidates, np.argsort(-cosine, axis=1)[:, :5])
    np.testing.assert_allclose(found.cosine, np.take_along_axis(cosine, found.candidates, axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.answers, np.take_along_axis(positive, found.candidates, axis=1))


@pytest.mark.parametrize("count, expected", [(0, 0), (99, 60)])
def test_candidates_are_clipped_to_the_gallery(count: int, expected: int) -> None:
    truth, rng = random_truth("several captions", 0, 60, 90), np.random.default_rng(0)
    found = nearest("t2i", truth, unit(rng, 60, 8), unit(rng, 90, 8), count, one_device())
    assert found.candidates.shape == found.cosine.shape == found.answers.shape == (90, expected)
