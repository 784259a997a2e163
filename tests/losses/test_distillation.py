"""Both distillations against their oracles: targets, weights, validity, and where gradients must not go."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.losses.contrastive import gcpr
from r2d2_jax.losses.distillation import Candidates, distilled_feature, fgd, running_mean, soft_target, tgd

B, K = 4, 6


def mean_tgd(*arguments: Any) -> jax.Array:
    return jnp.mean(tgd(*arguments))


compiled_tgd = jax.jit(mean_tgd)
tgd_gradients = jax.jit(jax.grad(mean_tgd, argnums=(0, 1, 6)))
compiled_target = jax.jit(soft_target)
compiled_fgd = jax.jit(fgd, static_argnums=(3, 4))
compiled_mean = jax.jit(running_mean, static_argnums=3)


def units(seed: int, rows: int, size: int = 5) -> np.ndarray:
    feature = np.random.default_rng(seed).normal(size=(rows, size))
    return (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)


def same(rows: list[int], columns: list[int]) -> np.ndarray:
    return np.array(rows)[:, None] == np.array(columns)[None, :]


def candidates(image_embed: jax.Array, text_embed: jax.Array, weight: jax.Array, valid: jax.Array) -> Candidates:
    """Of joined embeddings of batch and queue, which may be empty."""
    return Candidates(*((keys[:B], keys[B:]) for keys in (image_embed, text_embed)), weight, valid)


class Case:
    """A batch of four, three of them of one image that also lies in the queue, and a partly filled queue of six."""

    def __init__(self) -> None:
        ids = [0, 1, 0, 2]
        self.image, self.text = units(0, B), units(1, B)
        self.key_image, self.key_text = units(2, B + K), units(3, B + K)
        self.weight = np.array([1, 1, 1, 1, 0.99, 0.99, 0.9801, 0.5, 1, 0], np.float32)
        self.valid = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 1], bool)
        self.positive = same(ids, [*ids, 2, 5, 0, 0, 1, 6])

    def candidates(self) -> Candidates:
        return candidates(*map(jnp.array, (self.key_image, self.key_text, self.weight, self.valid)))

    def arguments(self, temperature: float, share: float) -> tuple[Any, ...]:
        return (
            jnp.array(self.image),
            jnp.array(self.text),
            jnp.array(self.key_image[:B]),
            jnp.array(self.key_text[:B]),
            self.candidates(),
            jnp.array(self.positive),
            jnp.float32(temperature),
            jnp.float32(share),
        )

    def loss(self, temperature: float = 0.1, share: float = 0.4) -> jax.Array:
        return compiled_tgd(*self.arguments(temperature, share))

    def gradients(self, temperature: float = 0.1, share: float = 0.4) -> tuple[jax.Array, ...]:
        """Of image_embed, text_embed and temperature."""
        return tgd_gradients(*self.arguments(temperature, share))

    def oracle(self, temperature: float = 0.1, share: float = 0.4) -> float:
        return oracles.tgd(
            self.image,
            self.text,
            self.key_image,
            self.key_text,
            self.weight,
            self.valid,
            self.positive,
            temperature,
            share,
        )


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.mark.parametrize("temperature", [0.001, 0.07, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_tgd_equals_oracle(case: Case, temperature: float, share: float) -> None:
    np.testing.assert_allclose(case.loss(temperature, share), case.oracle(temperature, share), rtol=1e-5, atol=1e-5)


def test_tgd_gradients_equal_the_oracle_with_a_fixed_target(case: Case) -> None:
    rest = (case.key_image, case.key_text, case.weight, case.valid, case.positive)
    expected = (
        oracles.numerical_gradient(lambda x: oracles.tgd(x, case.text, *rest, 0.1, 0.4), case.image),
        oracles.numerical_gradient(lambda x: oracles.tgd(case.image, x, *rest, 0.1, 0.4), case.text),
        oracles.numerical_gradient(
            lambda x: oracles.tgd(case.image, case.text, *rest, float(x), 0.4, teacher_temperature=0.1), np.array(0.1)
        ),
    )
    for gradient, reference in zip(case.gradients(), expected, strict=True):
        assert np.abs(reference).max() > 1e-2
        np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-4)


def test_tgd_sends_no_gradient_into_the_candidates(case: Case) -> None:
    def loss(image_embed: jax.Array, text_embed: jax.Array, weight: jax.Array) -> jax.Array:
        return mean_tgd(
            jnp.array(case.image),
            jnp.array(case.text),
            image_embed[:B],
            text_embed[:B],
            candidates(image_embed, text_embed, weight, jnp.array(case.valid)),
            jnp.array(case.positive),
            jnp.array(0.1),
            jnp.array(0.4),
        )

    keys = tuple(map(jnp.array, (case.key_image, case.key_text, case.weight)))
    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*keys):
        np.testing.assert_array_equal(gradient, 0)


def test_tgd_gradients_of_an_uneven_sum_are_those_of_each_row(case: Case) -> None:
    """Row i of the losses reads row i of the embeddings alone, and the temperature."""
    share = np.array([0.0, 3.0, -1.0, 0.5], np.float32)

    def summed(rows: np.ndarray, *arguments: Any) -> jax.Array:
        return jnp.sum(jnp.asarray(rows) * tgd(*arguments))

    gradients = jax.jit(jax.grad(summed, argnums=(1, 2, 7)))
    found, each = gradients(share, *case.arguments(0.1, 0.4)), np.diag(share)
    parts = [gradients(row, *case.arguments(0.1, 0.4)) for row in each]
    for way in (0, 1):
        np.testing.assert_array_equal(found[way][0], 0)
        own = np.stack([parts[row][way][row] for row in range(B)])
        np.testing.assert_allclose(found[way], own, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found[2], sum(part[2] for part in parts), rtol=1e-5)
    whole = case.gradients()  # of the mean
    np.testing.assert_allclose(found[0][1], 3 * B * whole[0][1], rtol=1e-5)


@pytest.mark.parametrize("garbage", [0.0, 3.0, -1e30, 1e30])
def test_unfilled_queue_slots_take_part_in_nothing(case: Case, garbage: float) -> None:
    clean = (case.loss(), *case.gradients())
    for array in (case.key_image, case.key_text, case.weight):
        array[~case.valid] = garbage
    case.positive[:, ~case.valid] = ~case.positive[:, ~case.valid]
    for value, expected in zip((case.loss(), *case.gradients()), clean, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_unfilled_queue_slots_are_the_same_as_no_slots(case: Case) -> None:
    full = (case.loss(), *case.gradients())
    kept = case.valid.copy()
    case.key_image, case.key_text = case.key_image[kept], case.key_text[kept]
    case.weight, case.valid, case.positive = case.weight[kept], case.valid[kept], case.positive[:, kept]
    for value, expected in zip((case.loss(), *case.gradients()), full, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_tgd_does_not_depend_on_the_order_of_batch_or_queue(case: Case) -> None:
    loss = case.loss()
    rows, queue = np.array([2, 0, 3, 1]), np.array([5, 3, 1, 0, 2, 4])
    keys = np.concatenate([rows, B + queue])
    case.image, case.text = case.image[rows], case.text[rows]
    case.key_image, case.key_text = case.key_image[keys], case.key_text[keys]
    case.weight, case.valid, case.positive = case.weight[keys], case.valid[keys], case.positive[rows][:, keys]
    np.testing.assert_allclose(case.loss(), loss, rtol=1e-6)


def test_hard_targets_without_a_queue_have_the_value_of_gcpr(case: Case) -> None:
    """The teacher's keys are the student's embeddings, the share of the teacher is 0 and every slot is unfilled."""
    case.key_image[:B], case.key_text[:B] = case.image, case.text
    case.valid[B:] = False
    i2t = case.image @ case.text.T / np.float32(0.1)
    expected = jnp.mean(gcpr(*map(jnp.array, (i2t, i2t.T, case.positive[:, :B]))))
    np.testing.assert_allclose(case.loss(share=0.0), expected, rtol=1e-6)


def test_a_weight_scales_its_keys_terms_exactly(case: Case) -> None:
    losses = []
    for queue_weight in (0.0, 0.5, 1.0):
        case.weight[B:] = queue_weight
        losses.append(float(case.loss()))
        assert math.isclose(losses[-1], case.oracle(), rel_tol=1e-5)
    zero, half, one = losses
    assert one - zero > 0.1
    np.testing.assert_allclose(half - zero, (one - zero) / 2, rtol=1e-5)


def test_weights_do_not_enter_the_softmax(case: Case) -> None:
    """A key of weight 0 and target 0 still competes: the loss is larger than without the key."""
    case.weight[B:], case.positive[:, B:] = 0, False
    competing = float(case.loss(share=0.0))
    case.valid[B:] = False
    assert competing > float(case.loss(share=0.0)) + 0.1


def test_tgd_by_hand() -> None:
    """One pair, one queue entry of weight 1/2, orthogonal, temperature 1, alpha 0.4.

    p = (e, 1) / (e + 1) = (0.731059, 0.268941); target = (0.6 + 0.4 * 0.731059, 0.4 * 0.268941) = (0.892423, 0.107577);
    loss = 0.892423 * 0.313262 + 0.5 * 0.107577 * 1.313262 = 0.350201, the same in both directions.
    """
    basis = jnp.eye(2)
    keys = Candidates((basis[:1], basis[1:]), (basis[:1], basis[1:]), jnp.array([1.0, 0.5]), jnp.array([True, True]))
    (loss,) = tgd(*[basis[:1]] * 4, keys, jnp.array([[True, False]]), jnp.array(1.0), jnp.array(0.4))
    np.testing.assert_allclose(loss, 0.350201, atol=2e-6)


def targets(case: Case, share: float) -> np.ndarray:
    logits = case.key_image[:B] @ case.key_text.T / np.float32(0.1)
    return np.asarray(compiled_target(*map(jnp.array, (logits, case.positive, case.valid)), jnp.float32(share)))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_soft_targets_sum_to_one_and_equal_the_oracle(case: Case, share: float) -> None:
    target = targets(case, share)
    np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(target[:, ~case.valid], 0)
    for i in range(B):
        expected = oracles.soft_target(case.key_image[i], case.key_text, case.positive[i], case.valid, 0.1, share)
        np.testing.assert_allclose(target[i], expected, rtol=1e-5, atol=1e-6)


def test_positives_in_batch_and_queue_share_the_mass_equally(case: Case) -> None:
    target = targets(case, 0.0)
    # A fourth positive of row 0 and the only other one of row 1 lie in unfilled slots.
    np.testing.assert_allclose(target[0], np.array([1, 0, 1, 0, 0, 0, 0, 1, 0, 0]) / 3, rtol=1e-6)
    np.testing.assert_allclose(target[1], np.eye(B + K)[1])
    np.testing.assert_allclose(target[3], np.array([0, 0, 0, 1, 1, 0, 0, 0, 0, 0]) / 2)


def test_soft_target_has_no_gradient(case: Case) -> None:
    def sharpness(logits: jax.Array, share: jax.Array) -> jax.Array:
        return jnp.sum(soft_target(logits, jnp.array(case.positive), jnp.array(case.valid), share) ** 2)

    arguments = (jnp.array(case.key_image[:B] @ case.key_text.T), jnp.array(0.4))
    for gradient in jax.jit(jax.grad(sharpness, argnums=(0, 1)))(*arguments):
        np.testing.assert_array_equal(gradient, 0)


def features(seed: int, rows: int = 3, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)


@pytest.mark.parametrize(("student_temperature", "teacher_temperature"), [(0.1, 0.04), (1.0, 1.0), (0.5, 2.0)])
def test_fgd_equals_oracle(student_temperature: float, teacher_temperature: float) -> None:
    student, teacher, mean = features(0), features(1), features(2)[0]
    temperatures = (student_temperature, teacher_temperature)
    loss = compiled_fgd(jnp.array(student), jnp.array(teacher), jnp.array(mean), *temperatures)
    expected = oracles.fgd(student, teacher, mean, *temperatures)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


def test_fgd_teaches_the_student_only() -> None:
    student, teacher, mean = features(3), features(4), features(5)[0]
    gradients = jax.jit(jax.grad(fgd, argnums=(0, 1, 2)), static_argnums=(3, 4))(
        jnp.array(student), jnp.array(teacher), jnp.array(mean), 0.5, 0.4
    )
    expected = oracles.numerical_gradient(lambda x: oracles.fgd(x, teacher, mean, 0.5, 0.4), student)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[2], 0)


def test_distilled_feature_equals_oracle() -> None:
    """Layer-normed features have mean 0 and deviation 1 at any length of the feature; unit ones have length 1."""
    feature = features(7) * np.array([[1e-3], [1.0], [1e3]], np.float32) + 0.5
    found = {
        form: np.array(distilled_feature(jnp.array(feature), form)) for form in ("layer_norm", "unit", "projected")
    }
    np.testing.assert_allclose(found["layer_norm"], oracles.normed_feature(feature), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["layer_norm"].std(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found["unit"], feature / np.linalg.norm(feature, axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(found["projected"], feature)
    same = distilled_feature(jnp.ones((1, 4)), "layer_norm")  # a feature without any deviation is zero, not NaN
    np.testing.assert_array_equal(same, 0)


def test_fgd_by_hand() -> None:
    zero, mean = jnp.zeros((2, 4)), jnp.array([0.3, -1.0, 2.0, 0.0])
    # A student that tells nothing apart: log of the number of features, whatever the teacher says.
    indifferent = compiled_fgd(zero, jnp.array(features(6, 2, 4)), mean, 1.0, 0.04)
    np.testing.assert_allclose(indifferent, math.log(4), rtol=1e-6)
    # A teacher at its mean has a uniform target: here log(3 + e) - 1/4 at tau_s 1.
    student = jnp.array([[1.0, 0.0, 0.0, 0.0]] * 2)
    at_the_mean = compiled_fgd(student, zero + mean, mean, 1.0, 0.04)
    np.testing.assert_allclose(at_the_mean, math.log(3 + math.e) - 0.25, rtol=1e-6)
    # A teacher sure of feature 0: -log_softmax of the student there.
    sure = zero + mean + jnp.array([10.0, 0, 0, 0])
    np.testing.assert_allclose(compiled_fgd(student, sure, mean, 1.0, 0.04), math.log(3 + math.e) - 1, rtol=1e-5)


def mean_after(mean: np.ndarray, teacher: np.ndarray, step: int) -> jax.Array:
    return compiled_mean(jnp.array(mean), jnp.array(teacher), jnp.int32(step), 0.9)


@pytest.mark.parametrize("step", [0, 1, 8, 9, 10, 100_000])
def test_feature_mean_equals_oracle(step: int) -> None:
    mean, teacher = features(7)[0], features(8)
    expected = oracles.feature_mean(mean, teacher, step, 0.9)
    np.testing.assert_allclose(mean_after(mean, teacher, step), expected, rtol=1e-5, atol=1e-6)


def test_feature_mean_by_hand() -> None:
    mean, teacher = np.float32([1.0, 0.0]), np.float32([[3.0, 2.0], [1.0, 0.0]])
    np.testing.assert_allclose(mean_after(mean, teacher, 1000), [1.1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(mean_after(mean, teacher, 0), [2.0, 1.0])  # the first value counts for nothing


def test_the_first_batches_are_averaged_evenly_and_the_mean_then_forgets() -> None:
    batches = [features(seed) for seed in range(10, 20)]
    mean: Any = np.full(6, 7.0, np.float32)
    for step, batch in enumerate(batches):
        mean = mean_after(np.asarray(mean), batch, step)
        np.testing.assert_allclose(mean, np.concatenate(batches[: step + 1]).mean(axis=0), rtol=1e-5, atol=1e-5)
    for step in range(10, 160):
        mean = mean_after(np.asarray(mean), batches[0], step)
    np.testing.assert_allclose(mean, batches[0].mean(axis=0), atol=1e-5)
