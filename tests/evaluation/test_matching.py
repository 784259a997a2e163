"""AUC, thresholds and intervals against scikit-learn and naive loops; the scores of a split against the plain model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_cases import MODEL, TEXTS, images, labelled, labelled_pairs
from sklearn.metrics import roc_auc_score

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.evaluation.matching import (
    MatchingReport,
    auc,
    best_threshold,
    evaluate_matching,
    matching_figures,
    pair_scores,
)
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.sharding import make_mesh


def random_case(seed: int, decimals: int, pairs: int = 83) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    match = np.append(rng.random(pairs) < 0.3, [True, False])
    return np.round(rng.random(len(match)) + 0.3 * match, decimals).astype(np.float32), match


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_auc_equals_scikit_learn_s(seed: int, decimals: int) -> None:
    """Few decimals make many ties."""
    scores, match = random_case(seed, decimals)
    assert auc(scores, match) == pytest.approx(100 * roc_auc_score(match, scores), abs=1e-11)


def test_auc_of_the_extremes() -> None:
    match = np.array([True, False, True, False, False])
    assert auc(match.astype(np.float32), match) == 100
    assert auc(-match.astype(np.float32), match) == 0
    assert auc(np.ones(5), match) == 50
    assert auc(np.full(5, np.nan), match) == 0, "what cannot be told apart with NaN is lost"
    assert auc(np.array([np.nan, 0.1, 0.9, 0.2, np.nan]), match) == pytest.approx(100 * 2 / 6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 6])
def test_no_threshold_is_better_than_the_best(seed: int, decimals: int) -> None:
    scores, match = random_case(seed, decimals)
    right = lambda cut: np.mean((scores.astype(float) > cut) == match)  # noqa: E731
    best = best_threshold(scores, match)
    tried = [*scores.astype(float), -1.0, 2.0]
    assert right(best) == max(map(right, tried))
    assert best not in scores.astype(float) or best == scores.max(), "it lies between two scores"
    assert matching_figures(scores, match, np.arange(len(match)), half=False).cut.accuracy == 100 * right(best)


def test_thresholds_where_one_answer_is_best_for_all() -> None:
    match = np.array([True, True, False])
    all_match, none_match = best_threshold(np.array([1.0, 2, 3]), match), best_threshold(np.array([1.0, 2, 3]), ~match)
    assert (all_match < 1, none_match) == (True, 2.5)
    assert best_threshold(np.array([1.0, 2, 3]), np.array([True, False, False])) == 3
    assert best_threshold(np.full(3, np.nan), match) == 0.5


def test_accuracies_of_each_class_and_at_half() -> None:
    """A probability of exactly one half is no match."""
    scores = np.array([0.9, 0.5, 0.4, 0.1, 0.6, 0.5])
    match = np.array([True, True, True, False, False, False])
    figures = matching_figures(scores, match, np.arange(6), 0.45, half=True)
    assert figures.half is not None
    assert (figures.half.accuracy, figures.half.match_accuracy) == pytest.approx((50, 100 / 3))
    assert figures.half.no_match_accuracy == pytest.approx(200 / 3)
    assert (figures.cut.threshold, figures.cut.accuracy) == pytest.approx((0.45, 50))
    assert (figures.cut.match_accuracy, figures.cut.no_match_accuracy) == pytest.approx((200 / 3, 100 / 3))
    assert figures.intervals == {}


def test_intervals_draw_images_and_hold_the_figure() -> None:
    """With the pairs of each image drawn together they are wider than if each pair were drawn alone."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(30), 10)
    match = rng.random(300) < 0.5
    scores = rng.normal(size=300) + match + rng.normal(size=30)[image] * np.where(match, 1, -1)
    ours = matching_figures(scores, match, image, half=True, intervals=True)
    alone = matching_figures(scores, match, np.arange(300), half=True, intervals=True)
    assert ours.intervals.keys() == {"auc", "accuracy", "half_accuracy"}
    for name, value in (("auc", ours.auc), ("accuracy", ours.cut.accuracy)):
        (low, high), (near_low, near_high) = ours.intervals[name], alone.intervals[name]
        assert low < value < high
        assert high - low > 1.5 * (near_high - near_low)


def test_an_interval_equals_a_naive_bootstrap() -> None:
    scores, match = random_case(1, 1, 40)
    image = np.arange(len(match)) // 2
    rng, drawn = np.random.default_rng(0), []
    groups = [np.flatnonzero(image == number) for number in range(image.max() + 1)]
    for _ in range(1000):
        rows = np.concatenate([groups[number] for number in rng.integers(len(groups), size=len(groups))])
        if match[rows].any() and not match[rows].all():
            drawn.append(100 * roc_auc_score(match[rows], scores[rows]))
    found = matching_figures(scores, match, image, half=False, intervals=True).intervals["auc"]
    assert found == pytest.approx(np.percentile(drawn, (2.5, 97.5)))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(MODEL.module, make_mesh(MeshConfig(), jax.devices()[:1]), 16)


def test_scores_equal_the_plain_model_whatever_the_batch(scorer: Scorer) -> None:
    """Neither the last batch of images nor any of texts is full; on eight devices see test_encoder."""
    pairs = labelled_pairs()
    apply: Any = lambda stage, *rows: MODEL.module.apply({"params": MODEL.params}, *rows, method=stage)  # noqa: E731
    image = apply("encode_image", normalise_images(jnp.asarray(images())))
    text = apply("encode_text", jnp.asarray(pairs.input_ids), jnp.asarray(pairs.attention_mask))
    logits = apply("match", text.tokens, jnp.asarray(pairs.attention_mask), image.tokens[pairs.image])
    cosine = np.sum(np.asarray(image.embed)[pairs.image] * np.asarray(text.embed), axis=1)
    for batch_size in (16, 5, 64):
        found = labelled(make_mesh(MeshConfig(), jax.devices()[:1]), batch_size)
        np.testing.assert_allclose(found["labelled cosine"], cosine, atol=1e-5)
        np.testing.assert_allclose(found["labelled match"], match_probability(logits), atol=1e-5)


def report(scorer: Scorer, params: Any, **settings: Any) -> tuple[MatchingReport, np.ndarray]:
    pairs: Any = labelled_pairs()
    pairs.match = np.arange(TEXTS) % 3 == 0
    type(pairs).__len__, pairs.num_images = lambda self: TEXTS, 21
    return evaluate_matching(scorer, scorer.encoder.placed(params), pairs, **settings), pairs.match


def test_a_report_has_both_scores_and_their_chance(scorer: Scorer) -> None:
    found, match = report(scorer, MODEL.params, intervals=True, role="test")
    cosine, probability = pair_scores(scorer, scorer.encoder.placed(MODEL.params), labelled_pairs())  # type: ignore[arg-type]
    assert probability is not None
    assert found.match is not None
    assert (found.match.auc, found.dual.auc) == (auc(probability, match), auc(cosine, match))
    assert found.scores() == {"dual": found.dual.auc, "match": found.match.auc}
    assert (found.pairs, found.images, found.matches) == (37, 21, 13)
    assert found.chance == {"auc": 50, "accuracy": pytest.approx(100 * 24 / 37)}
    metrics = found.metrics()
    assert metrics["test/match/auc"] == found.match.auc
    assert metrics["test/dual/accuracy"] == found.dual.cut.accuracy
    assert "test/dual/half_accuracy" not in metrics, "a cosine is no probability"
    assert "test/match/half_no_match_accuracy" in metrics
    table = found.table().splitlines()
    assert table[0] == "matching on test, 37 pairs of 21 images, 13 match"
    assert table[2] == f"{'  AUC':<28}{found.dual.auc:>8.1f}{found.match.auc:>11.1f}{50:>8.1f}"
    given, _ = report(scorer, MODEL.params, threshold=0.25, dual_threshold=0.5)
    assert given.match is not None
    assert (given.match.cut.threshold, given.dual.cut.threshold, given.chosen_here) == (0.25, 0.5, False)
    assert "accuracy, given threshold" in given.table()


def test_without_cross_encoders_there_is_the_cosine_alone(scorer: Scorer) -> None:
    towers = {name: part for name, part in MODEL.params.items() if "match_head" not in name}
    found, _ = report(scorer, towers)
    assert found.match is None
    assert found.scores() == {"dual": found.dual.auc}
    assert not any("/match/" in name for name in found.metrics())
    assert "-" in found.table().splitlines()[2]
