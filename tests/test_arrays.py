"""Unit norm, image identity, and the checked annotations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.arrays import Array, Batch, Bool, Encoded, Float, checked, interleaved, right_pairs, same_image, unit_norm


def test_unit_norm_equals_oracle_and_keeps_the_direction() -> None:
    feature = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * [[1e-6], [1e-3], [1], [1e3], [1e6]]
    embed = unit_norm(jnp.array(feature, jnp.float32))
    np.testing.assert_allclose(embed, oracles.unit(feature), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embed, axis=1), 1, rtol=1e-6)


def test_unit_norm_works_on_any_leading_axes_and_in_float32() -> None:
    feature = jnp.array(np.random.default_rng(1).normal(size=(2, 3, 4)), jnp.bfloat16)
    embed = unit_norm(feature)
    assert embed.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(embed, axis=-1), 1, rtol=1e-6)


def test_unit_norm_of_zero_is_zero_with_a_finite_gradient() -> None:
    value, gradient = jax.value_and_grad(lambda feature: jnp.sum(unit_norm(feature)))(jnp.zeros((2, 4)))
    assert value == 0
    assert np.isfinite(gradient).all()


def test_unit_norm_gradient_has_no_radial_part() -> None:
    feature = jnp.array(np.random.default_rng(2).normal(size=(4,)), jnp.float32)
    gradient = jax.grad(lambda f: jnp.dot(unit_norm(f), jnp.arange(4.0)))(feature)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(jnp.dot(gradient, feature), 0, atol=1e-5)


def test_same_image_compares_both_halves() -> None:
    rows = np.array([[1, 2], [1, 3], [2, 2], [0, 0], [2**32 - 1, 7]], np.uint32)
    columns = np.array([[1, 2], [3, 1], [2**32 - 1, 7], [2, 1], [1, 3], [1, 2]], np.uint32)
    expected = [[tuple(row) == tuple(column) for column in columns] for row in rows]
    np.testing.assert_array_equal(same_image(jnp.array(rows), jnp.array(columns)), expected)
    assert same_image(jnp.array(rows), jnp.array(rows)).sum() == len(rows)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (jnp.zeros((3, 1), jnp.uint32), jnp.zeros((3, 1), jnp.uint32)),
        (jnp.zeros((3, 2), jnp.int32), jnp.zeros((3, 2), jnp.uint32)),
        (jnp.zeros((2,), jnp.uint32), jnp.zeros((3, 2), jnp.uint32)),
    ],
)
def test_same_image_refuses_other_shapes_and_dtypes(row: jax.Array, column: jax.Array) -> None:
    with pytest.raises(Exception, match="(?s)same_image.*row_id"):
        same_image(row, column)


def test_checked_functions_check_arguments_and_result_when_called_and_when_traced() -> None:
    @checked
    def halves(x: Float[Array, "b d"], keep: Bool[Array, " b"]) -> Float[Array, "b d"]:
        return x[: len(x) // 2] if x.shape[1] == 1 else x

    good = (jnp.ones((4, 3)), jnp.ones(4, bool))
    for function in (halves, jax.jit(halves)):
        assert function(*good).shape == (4, 3)
        with pytest.raises(Exception, match="(?s)halves.*keep"):
            function(good[0], jnp.ones(3, bool))
        with pytest.raises(Exception, match="(?s)return value of.*halves"):
            function(jnp.ones((4, 1)), good[1])


def test_the_structs_travel_through_transformations() -> None:
    batch = Batch(
        jnp.zeros((2, 4, 4, 3), jnp.uint8),
        jnp.ones((2, 5), jnp.int32),
        jnp.ones((2, 5), bool),
        jnp.zeros((2, 2), jnp.uint32),
    )
    doubled = jax.jit(lambda b: jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), b))(batch)
    assert isinstance(doubled, Batch)
    assert [leaf.shape[0] for leaf in jax.tree.leaves(doubled)] == [4] * 4
    encoded = jax.tree.map(lambda leaf: leaf + 1, Encoded(jnp.zeros((1, 2, 3)), jnp.zeros((1, 3)), jnp.zeros((1, 3))))
    np.testing.assert_array_equal(encoded.embed, np.ones((1, 3)))


def test_right_pairs_equal_the_naive_ones() -> None:
    """Ids of few values: equal in both halves, in one, and zeros, which are a text without an identity."""
    rng = np.random.default_rng(0)
    image, text = rng.integers(0, 3, (2, 12, 2)).astype(np.uint32)
    image_keys, text_keys = rng.integers(0, 3, (2, 30, 2)).astype(np.uint32)
    found = right_pairs(*map(jnp.asarray, (image, text, image_keys, text_keys)))
    for i, j in itertools.product(range(12), range(30)):
        same_image = tuple(image[i]) == tuple(image_keys[j])
        same_text = tuple(text[i]) == tuple(text_keys[j]) != (0, 0)
        assert bool(found[i, j]) == (same_image or same_text), (i, j)
    without = right_pairs(jnp.asarray(image), None, jnp.asarray(image_keys), None)
    nothing = jnp.zeros_like(text)
    found = right_pairs(jnp.asarray(image), nothing, jnp.asarray(image_keys), jnp.asarray(text_keys))
    np.testing.assert_array_equal(found, without)


def test_interleaved_rows_stand_in_turn() -> None:
    parts = np.random.default_rng(0).normal(size=(3, 5, 2, 4)).astype(np.float32)
    rows = interleaved(*map(jnp.asarray, parts))
    np.testing.assert_array_equal(rows[3 * 2 + 1], parts[1][2])
    for turn, part in enumerate(parts):
        np.testing.assert_array_equal(rows[turn::3], part)
