"""Activations, layer norm, attention and the scanned stack."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.config.model import REMAT_WORDS, ImageTowerConfig
from r2d2_jax.models.layers import ATTENTION, Activation, Attention, LayerNorm, Mlp, erf_gelu, quick_gelu, scanned
from r2d2_jax.models.vit import ImageEncoder


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(module: nn.Module, *arguments: Any) -> oracles.Tree:
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]


def test_activations_equal_their_closed_forms() -> None:
    x = np.linspace(-8, 8, 101).astype(np.float32)
    np.testing.assert_allclose(quick_gelu(jnp.array(x)), oracles.quick_gelu(x.astype(np.float64)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(erf_gelu(jnp.array(x)), oracles.erf_gelu(x.astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "oracle"), [(quick_gelu, oracles.quick_gelu), (erf_gelu, oracles.erf_gelu)])
def test_derivatives_of_activations(ours: Activation, oracle: Callable[[np.ndarray], np.ndarray]) -> None:
    """Against central differences in float64; in bfloat16 values and derivatives are rounded once."""
    x = np.linspace(-8, 8, 101).astype(np.float32)
    rounded = jnp.asarray(x, jnp.bfloat16)
    for at, rounding in ((jnp.asarray(x), 1e-6), (rounded, 2**-8)):
        exact = np.asarray(at.astype(jnp.float32), np.float64)
        expected = (oracle(exact + 1e-5) - oracle(exact - 1e-5)) / 2e-5
        value, derivative = jax.jvp(ours, (at,), (jnp.ones_like(at),))
        assert value.dtype == derivative.dtype == at.dtype
        np.testing.assert_allclose(value.astype(jnp.float32), oracle(exact), rtol=rounding, atol=1e-6)
        np.testing.assert_allclose(derivative.astype(jnp.float32), expected, rtol=rounding, atol=1e-6)


def test_activations_at_one() -> None:
    assert abs(float(quick_gelu(jnp.array(1.0))) - 0.8457958) < 1e-6  # 1 / (1 + exp(-1.702))
    assert abs(float(erf_gelu(jnp.array(1.0))) - 0.8413447) < 1e-6  # the normal distribution at 1
    assert abs(float(erf_gelu(jnp.array(1.0))) - 0.8411920) > 1e-4  # the tanh approximation


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
@pytest.mark.parametrize(("offset", "deviation"), [(0.0, 1.0), (0.0, 1e-6), (0.0, 3e-3), (2.0, 0.5), (0.0, 1e4)])
def test_layer_norm_equals_oracle(epsilon: float, offset: float, deviation: float) -> None:
    hidden = (offset + deviation * normal(0, 2, 3, 16)).astype(np.float32)
    parameters = oracles.random_parameters(shapes(LayerNorm(epsilon), hidden), 1)
    normed = jax.jit(LayerNorm(epsilon).apply)({"params": parameters}, hidden)
    np.testing.assert_allclose(normed, oracles.layer_norm(parameters, hidden, epsilon), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_layer_norm_survives_a_mean_far_above_the_deviation(offset: float) -> None:
    """Centre first, then square: the mean of the squares less the square of the mean would lose the variance."""
    hidden = (offset + 0.1 * normal(1, 4, 16)).astype(np.float32)
    parameters = oracles.random_parameters(shapes(LayerNorm(1e-12), hidden), 2)
    normed = jax.jit(LayerNorm(1e-12).apply)({"params": parameters}, hidden)
    np.testing.assert_allclose(normed, oracles.layer_norm(parameters, hidden, 1e-12), atol=1e-3)


def test_layer_norm_computes_in_float32_and_returns_the_dtype_of_its_input() -> None:
    hidden = jnp.array(normal(2, 3, 16), jnp.bfloat16)
    parameters = oracles.random_parameters(shapes(LayerNorm(1e-5), hidden), 3)
    normed = LayerNorm(1e-5).apply({"params": parameters}, hidden)
    assert normed.dtype == jnp.bfloat16
    exact = oracles.layer_norm(parameters, np.asarray(hidden, np.float64), 1e-5)
    np.testing.assert_allclose(np.asarray(normed, np.float64), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("context_tokens", "context_width"), [(5, 12), (7, 20)])
def test_attention_equals_oracle(masked: bool, context_tokens: int, context_width: int) -> None:
    queries, context = normal(3, 2, 5, 12), normal(4, 2, context_tokens, context_width)
    mask = np.arange(context_tokens) < np.array([[3], [1]]) if masked else None
    module = Attention(12, 3, jnp.float32)
    parameters = oracles.random_parameters(shapes(module, queries, context), 5)
    mixed = jax.jit(module.apply)({"params": parameters}, queries, context, mask)
    expected = oracles.attention(parameters, queries, context, mask, 3)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5)


def test_attention_over_nothing_but_padding_is_finite() -> None:
    tokens = normal(5, 1, 3, 12)
    module = Attention(12, 3, jnp.float32)
    parameters = oracles.random_parameters(shapes(module, tokens, tokens), 6)

    def total(tokens: jax.Array) -> jax.Array:
        return jnp.sum(module.apply({"params": parameters}, tokens, tokens, jnp.zeros((1, 3), bool)))

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.array(tokens))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_mlp_equals_oracle_with_either_activation() -> None:
    hidden = normal(6, 2, 3, 8)
    for ours, oracle in ((quick_gelu, oracles.quick_gelu), (erf_gelu, oracles.erf_gelu)):
        module = Mlp(8, 20, ours, jnp.float32)
        parameters = oracles.random_parameters(shapes(module, hidden), 7)
        result = jax.jit(module.apply)({"params": parameters}, hidden)
        np.testing.assert_allclose(result, oracles.mlp(parameters, hidden, oracle), rtol=1e-5, atol=1e-5)


class Affine(nn.Module):
    """A layer for the stack: h * scale + shift."""

    @nn.compact
    def __call__(self, hidden: jax.Array, shift: jax.Array) -> tuple[jax.Array, None]:
        scale = self.param("scale", nn.initializers.normal(1.0), hidden.shape[-1:])
        return hidden * scale + shift, None


@pytest.mark.parametrize("remat", REMAT_WORDS)
@pytest.mark.parametrize("unroll", [False, True])
def test_a_stack_is_its_layers_one_after_the_other(remat: str, unroll: bool) -> None:
    stack = scanned(Affine, 3, remat=remat, unroll=unroll)()
    hidden, shift = jnp.array(normal(7, 2, 4)), jnp.array(normal(8, 4))
    scale = stack.init(jax.random.key(0), hidden, shift)["params"]["scale"]
    assert scale.shape == (3, 4)
    assert len(np.unique(scale)) == 12, "every layer draws its own initial values"

    def one_by_one(scale: jax.Array) -> jax.Array:
        result = hidden
        for layer in range(3):
            result = result * scale[layer] + shift
        return jnp.sum(jnp.sin(result))

    def stacked(scale: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(stack.apply({"params": {"scale": scale}}, hidden, shift)[0]))

    for result, expected in zip(*(jax.jit(jax.value_and_grad(f))(scale) for f in (stacked, one_by_one)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_unroll_leaves_no_loop_and_remat_marks_every_layer() -> None:
    hidden = jnp.ones((2, 4))
    for remat in REMAT_WORDS:
        for unroll in (False, True):
            stack = scanned(Affine, 3, remat=remat, unroll=unroll)()
            parameters = {"params": {"scale": jnp.ones((3, 4))}}
            loss = lambda p, stack=stack: jnp.sum(stack.apply(p, hidden, hidden[0])[0] ** 2)  # noqa: E731
            assert ("while" not in jax.jit(loss).lower(parameters).as_text()) is unroll
            jaxpr = str(jax.make_jaxpr(jax.grad(loss))(parameters))
            assert ("remat" in jaxpr or "checkpoint" in jaxpr) is (remat != "none")


@pytest.mark.parametrize("masked", [False, True])
def test_attention_weights_are_what_the_attention_reads(masked: bool) -> None:
    """Shares that sum to one, none of them on a masked token; with them the output can be computed once more."""
    module, queries, context = (
        Attention(8, 2, jnp.float32),
        jnp.array(normal(0, 2, 3, 8)),
        jnp.array(normal(1, 2, 5, 6)),
    )
    mask = jnp.array(np.arange(5) < np.array([[5], [2]])) if masked else None
    parameters = oracles.random_parameters(shapes(module, queries, context), 4)
    apply = partial(module.apply, {"params": parameters}, queries, context, mask)
    plain, (mixed, stored) = apply(), apply(mutable=[ATTENTION])
    np.testing.assert_array_equal(plain, mixed)
    (weights,) = stored[ATTENTION]["weights"]
    assert weights.shape == (2, 2, 3, 5)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-6)
    if masked:
        assert not np.any(weights[1, :, :, 2:])
    value = oracles.dense(parameters["value"], np.array(context)).reshape(2, 5, 2, 4)
    read = np.einsum("bhqc,bchs->bqhs", weights, value).reshape(2, 3, 8)
    np.testing.assert_allclose(plain, oracles.dense(parameters["out"], read), rtol=1e-5, atol=1e-5)


def test_keys_and_values_computed_once_serve_several_queries() -> None:
    module, context = Attention(8, 2, jnp.float32), jnp.array(normal(1, 2, 5, 8))
    parameters = oracles.random_parameters(shapes(module, context, context), 4)
    read = module.apply({"params": parameters}, context, method="keys_and_values")
    for seed in (2, 3):
        queries = jnp.array(normal(seed, 2, 3, 8))
        shared = module.apply({"params": parameters}, queries, read, method="attend")
        np.testing.assert_array_equal(shared, module.apply({"params": parameters}, queries, context))


def test_a_scanned_stack_gives_the_weights_of_every_layer() -> None:
    """Its own stack of layers, so that nothing of the model has to be written twice to look at what it reads."""
    config = ImageTowerConfig(image_size=16, patch_size=8, width=8, layers=3, heads=2, mlp_width=16)
    module, images = ImageEncoder(config, jnp.float32), jnp.array(normal(0, 2, 16, 16, 3))
    parameters = module.init(jax.random.key(0), images)["params"]
    tokens, stored = module.apply({"params": parameters}, images, mutable=[ATTENTION])
    np.testing.assert_array_equal(tokens, module.apply({"params": parameters}, images))
    (weights,) = stored[ATTENTION]["layers"]["attention"]["weights"]
    assert weights.shape == (3, 2, 2, 5, 5)
    assert len(np.unique(np.asarray(weights).reshape(3, -1), axis=0)) == 3
