"""FGR: which negatives are drawn and how often, and the class-weighted match loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.losses.matching import (
    match_loss,
    match_probability,
    negative_logits,
    sample_negatives,
    softmax_twice_loss,
)

IDS = np.array([0, 1, 0, 2, 3, 1])
POSITIVE = IDS[:, None] == IDS[None, :]
sample_many = jax.jit(jax.vmap(sample_negatives, in_axes=(0, None, None, None)))
compiled_loss = jax.jit(match_loss, static_argnums=3)
loss_gradient = jax.jit(jax.grad(match_loss), static_argnums=3)


DRAWS = 4000


def draw(logits: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(0), DRAWS)
    columns, exists = sample_many(keys, jnp.array(logits, jnp.float32), jnp.array(positive), jnp.arange(len(logits)))
    return np.asarray(columns), np.asarray(exists)


def test_same_image_is_never_drawn_and_frequencies_follow_the_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 6)) + 5 * POSITIVE  # the forbidden ones would be the favourites
    columns, exists = draw(logits, POSITIVE)
    expected = oracles.negative_weights(logits, POSITIVE) * DRAWS
    assert exists.all()
    for i in range(6):
        observed = np.bincount(columns[:, i], minlength=6)
        assert observed[POSITIVE[i]].sum() == 0
        legal = ~POSITIVE[i]
        chi_square = np.sum((observed[legal] - expected[i, legal]) ** 2 / expected[i, legal])
        assert chi_square < 25, (i, observed, expected[i])  # at most 4 degrees of freedom: chance below 1e-4


def test_rows_are_drawn_independently() -> None:
    columns, _ = draw(np.zeros((6, 6)), POSITIVE)
    assert len({tuple(row) for row in columns}) > 2500  # of 4 * 4 * 4 * 5 * 5 * 4 = 6400 that are equally likely


def test_the_softmax_of_the_log_weights_is_the_oracles() -> None:
    logits = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32) * 4
    weights = jax.nn.softmax(negative_logits(jnp.array(logits), jnp.array(POSITIVE)), axis=1)
    np.testing.assert_allclose(weights, oracles.negative_weights(logits, POSITIVE), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(weights)[POSITIVE], 0)


@pytest.mark.parametrize("scale", [1e3, 1e5])  # 1e3 is the largest that the smallest temperature allows
def test_negatives_of_vanishing_weight_are_still_legal(scale: float) -> None:
    """Softmax over all pairs gives every negative weight 0 here: the positives lie far above."""
    logits = np.where(POSITIVE, scale, -scale)
    columns, exists = draw(logits, POSITIVE)
    assert exists.all()
    assert not POSITIVE[np.arange(6), columns].any()
    for i in range(6):
        assert set(columns[:, i]) == set(np.flatnonzero(~POSITIVE[i]))  # uniform over the rest


def test_absurd_similarities_still_give_a_legal_negative() -> None:
    columns, exists = draw(np.where(POSITIVE, 1e30, -1e30), POSITIVE)
    assert exists.all()
    assert not POSITIVE[np.arange(6), columns].any()


def test_the_best_of_vanishing_negatives_is_drawn() -> None:
    logits = np.array([[1000.0, -1000.0, -1200.0]] * 3)
    positive = np.eye(3, dtype=bool)
    columns, _ = draw(logits, positive)
    assert (columns[:, 0] == 1).all()
    assert (columns[:, 1] == 0).all()
    assert (columns[:, 2] == 0).all()


def test_a_row_without_a_negative_is_told() -> None:
    positive = np.array([[True, True, True], [True, True, False], [True, False, True]])
    columns, exists = draw(np.random.default_rng(2).normal(size=(3, 3)), positive)
    np.testing.assert_array_equal(exists, [[False, True, True]] * DRAWS)
    assert ((columns >= 0) & (columns < 3)).all()
    assert (columns[:, 1] == 2).all()
    assert (columns[:, 2] == 1).all()


def test_a_batch_of_one_image_has_no_negatives() -> None:
    columns, exists = draw(np.zeros((3, 3)), np.ones((3, 3), bool))
    assert not exists.any()
    assert ((columns >= 0) & (columns < 3)).all()


def test_the_draw_is_a_function_of_the_key() -> None:
    arguments = (jnp.zeros((6, 6)), jnp.array(POSITIVE), jnp.arange(6))
    first, again, other = (sample_negatives(jax.random.key(seed), *arguments)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_row_has_the_same_draw_whichever_rows_are_drawn_for_with_it() -> None:
    logits, key = jnp.array(np.random.default_rng(4).normal(size=(6, 6))), jax.random.key(3)
    whole, _ = sample_negatives(key, logits, jnp.array(POSITIVE), jnp.arange(6))
    part = jnp.array([5, 1, 2])
    few, _ = sample_negatives(key, logits[part], jnp.array(POSITIVE)[part], part)
    np.testing.assert_array_equal(few, whole[part])


def pairs(seed: int = 3, rows: int = 7, encoders: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(rows, encoders, 2)).astype(np.float32) * 3,
        np.array([1, 0, 0, 1, 0, 0, 1], bool)[:rows],
        np.array([1, 1, 0, 1, 1, 1, 1], bool)[:rows],
    )


def loss_of(logits: np.ndarray, label: np.ndarray, counts: np.ndarray, weights: tuple[float, float]) -> float:
    return float(compiled_loss(jnp.array(logits), jnp.array(label), jnp.array(counts), weights))


@pytest.mark.parametrize(("weights", "encoders"), [((1.0, 2.0), 2), ((1.0, 1.0), 2), ((0.5, 3.0), 1)])
def test_match_loss_equals_oracle(weights: tuple[float, float], encoders: int) -> None:
    logits, label, counts = pairs(encoders=encoders)
    np.testing.assert_allclose(
        loss_of(logits, label, counts, weights),
        oracles.match_loss(logits, label, counts, weights),
        rtol=1e-5,
        atol=1e-5,
    )


def test_match_loss_gradient_equals_oracle() -> None:
    logits, label, counts = pairs()
    gradient = loss_gradient(jnp.array(logits), jnp.array(label), jnp.array(counts), (1.0, 2.0))
    expected = oracles.numerical_gradient(lambda x: oracles.match_loss(x, label, counts, (1.0, 2.0)), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit", [0.0, 40.0, 1e30])
def test_a_row_that_does_not_count_changes_nothing(logit: float) -> None:
    logits, label, counts = pairs()
    kept = counts.copy()
    without = loss_of(logits[kept], label[kept], counts[kept], (1.0, 2.0))
    logits[~counts] = [logit, -logit]
    for answer in (True, False):
        label[~counts] = answer
        np.testing.assert_allclose(loss_of(logits, label, counts, (1.0, 2.0)), without, rtol=1e-6)
        gradient = loss_gradient(jnp.array(logits), jnp.array(label), jnp.array(counts), (1.0, 2.0))
        np.testing.assert_array_equal(np.asarray(gradient)[~counts], 0)


def test_uniform_logits_cost_log_two() -> None:
    label = np.array([1, 0, 0] * 4, bool)
    for weights in ((1.0, 1.0), (1.0, 2.0)):
        np.testing.assert_allclose(
            loss_of(np.full((12, 2, 2), 0.7), label, np.ones(12, bool), weights), math.log(2), rtol=1e-6
        )


def test_with_weights_one_and_two_guessing_the_prior_gains_nothing() -> None:
    """One match to two negatives: weighted 1:2 the best constant answer is uniform, log 2; unweighted it is the class
    prior, whose entropy is 0.6365."""
    label, counts = jnp.array([True, False, False] * 4), jnp.ones(12, bool)

    def constant(answer: jax.Array, weights: tuple[float, float]) -> jax.Array:
        return match_loss(jnp.broadcast_to(answer, (12, 2, 2)), label, counts, weights)

    prior = jnp.log(jnp.array([2 / 3, 1 / 3]))
    evaluate = jax.jit(jax.value_and_grad(constant), static_argnums=1)
    for answer, weights, expected in ((prior, (1.0, 1.0), 0.6365), (jnp.zeros(2), (1.0, 2.0), math.log(2))):
        value, gradient = evaluate(answer, weights)
        np.testing.assert_allclose(value, expected, atol=1e-4)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)  # the loss is convex: the best constant answer
    assert evaluate(prior, (1.0, 2.0))[0] > math.log(2) + 0.01


def test_match_loss_by_hand() -> None:
    """One pair at log-odds +1 of each class, weights 1 and 2: (2 * 0.313262 + 1 * 1.313262) / 3."""
    logits = np.array([[[0.0, 1.0]], [[0.0, 1.0]]], np.float32)
    value = loss_of(logits, np.array([True, False]), np.ones(2, bool), (1.0, 2.0))
    np.testing.assert_allclose(value, 0.646595, atol=1e-6)


def test_match_loss_reads_bfloat16_in_float32() -> None:
    logits, label, counts = pairs()
    low = jnp.array(logits, jnp.bfloat16)
    value = compiled_loss(low, jnp.array(label), jnp.array(counts), (1.0, 2.0))
    assert value.dtype == jnp.float32
    exact = oracles.match_loss(np.asarray(low, np.float64), label, counts, (1.0, 2.0))
    np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_match_probability_is_the_mean_of_both_encoders() -> None:
    logits, _, _ = pairs()
    probability = match_probability(jnp.array(logits))
    np.testing.assert_allclose(probability, oracles.match_probability(logits), rtol=1e-5, atol=1e-6)
    by_hand = match_probability(jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5]]])))
    np.testing.assert_allclose(by_hand, [0.3], rtol=1e-5)


def test_softmax_twice_equals_the_oracle_and_never_comes_close_to_zero() -> None:
    rng = np.random.default_rng(3)
    logits, label = rng.normal(size=(7, 2, 2)).astype(np.float32), np.arange(7) % 3 == 0
    loss = softmax_twice_loss(jnp.array(logits), jnp.array(label))
    np.testing.assert_allclose(loss, oracles.softmax_twice_loss(logits, label), rtol=1e-5)
    sure = jnp.array(np.where(label[:, None, None], [-50.0, 50.0], [50.0, -50.0]).repeat(2, axis=1), jnp.float32)
    assert float(softmax_twice_loss(sure, jnp.array(label))) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    correct = match_loss(sure, jnp.array(label), jnp.ones(7, bool), (1.0, 1.0))
    assert float(correct) == pytest.approx(0, abs=1e-6)
