"""The cross encoders against their oracle; masks on both sides; the tokens that are read."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.config.model import REMAT_WORDS, CrossEncoderConfig
from r2d2_jax.models.cross_encoder import IMAGE_READS_TEXT, TEXT_READS_IMAGE, CrossEncoder, CrossLayer, Triple

SIZE = CrossEncoderConfig(layers=3, width=12, heads=3, mlp_width=20)
ENCODER = CrossEncoder(SIZE, jnp.float32)
cross = jax.jit(ENCODER.apply)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TOKENS, CONTEXT = normal(0, 2, 4, 12), normal(1, 2, 6, 16)
MASK, CONTEXT_MASK = np.arange(4) < np.array([[4], [2]]), np.arange(6) < np.array([[3], [6]])


@pytest.fixture(scope="module")
def parameters() -> oracles.Tree:
    shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), TOKENS, MASK, CONTEXT, None)["params"]
    return oracles.random_parameters(shapes, 2)


@pytest.mark.parametrize(("mask", "context_mask"), [(MASK, None), (None, CONTEXT_MASK), (MASK, CONTEXT_MASK)])
def test_cross_layer_equals_oracle(mask: np.ndarray | None, context_mask: np.ndarray | None) -> None:
    module = CrossLayer(SIZE, jnp.float32)
    arguments = (TOKENS, mask, CONTEXT, context_mask)
    weights = oracles.random_parameters(jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"], 3)
    result, _ = jax.jit(module.apply)({"params": weights}, *arguments)
    np.testing.assert_allclose(result, oracles.cross_layer(weights, *arguments, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["self_attention_norm", "cross_attention_norm", "mlp_norm"])
def test_the_epsilon_of_every_norm_is_that_of_bert(norm: str) -> None:
    """Tokens of variance 1e-12 arrive at the norm with nothing added, so the epsilon 1e-12 is half of the sum."""
    module = CrossLayer(SIZE, jnp.float32)
    hidden = TOKENS * np.float32(1e-6 if norm == "self_attention_norm" else 1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), hidden, MASK, CONTEXT, None)["params"]
    weights = oracles.random_parameters(shapes, 4)
    for last in (weights["self_attention"]["out"], weights["cross_attention"]["out"], weights["mlp"]["down"]):
        last["kernel"] *= 0
        last["bias"] *= 0
    before = {"cross_attention_norm": "self_attention_norm", "mlp_norm": "cross_attention_norm"}.get(norm)
    if before:
        weights[before]["norm"]["scale"] *= np.float32(1e-6)
        weights[before]["norm"]["bias"] *= 0
    result, _ = jax.jit(module.apply)({"params": weights}, hidden, MASK, CONTEXT, None)
    expected = oracles.cross_layer(weights, hidden, MASK, CONTEXT, None, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_cross_encoder_equals_oracle(parameters: oracles.Tree) -> None:
    result = cross({"params": parameters}, TOKENS, MASK, CONTEXT, CONTEXT_MASK)
    expected = oracles.cross_encoder(parameters, TOKENS, MASK, CONTEXT, CONTEXT_MASK, layers=3, heads=3)
    assert result.shape == (2, 4, 12)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("read", [[[0], [0]], [[3, 0, 0], [1, 2, 1]]])
def test_read_tokens_equal_those_of_the_full_result(parameters: oracles.Tree, read: list[list[int]]) -> None:
    arguments = ({"params": parameters}, TOKENS, MASK, CONTEXT, CONTEXT_MASK)
    full = np.asarray(cross(*arguments))
    part = cross(*arguments, jnp.array(read))
    expected = np.stack([full[row, places] for row, places in enumerate(read)])
    np.testing.assert_allclose(part, expected, rtol=1e-5, atol=2e-6)


def test_what_is_stored_is_not_multiplied_again(parameters: oracles.Tree) -> None:
    def total(parameters: oracles.Tree, encoder: CrossEncoder) -> jax.Array:
        arguments = map(jnp.array, (TOKENS, MASK, CONTEXT, CONTEXT_MASK))
        return jnp.sum(jnp.sin(encoder.apply({"params": parameters}, *arguments)))

    def products(remat: str) -> int:
        encoder = CrossEncoder(SIZE, jnp.float32, remat=remat)
        return str(jax.make_jaxpr(jax.grad(total), static_argnums=1)(parameters, encoder)).count("dot_general[")

    stored, kept, recomputed = map(products, ("none", "products", "all"))
    # Two in each attention, and ten Dense layers with parameters; the program holds the scanned layer and the last one.
    assert kept == stored + 2 * (2 + 2)
    assert recomputed == kept + 2 * 10


@pytest.mark.parametrize("remat", ["products", "all"])
def test_remat_and_unroll_change_neither_outputs_nor_gradients(parameters: oracles.Tree, remat: str) -> None:
    def total(parameters: oracles.Tree, encoder: CrossEncoder) -> jax.Array:
        arguments = map(jnp.array, (TOKENS, MASK, CONTEXT, CONTEXT_MASK, [[0, 2], [1, 0]]))
        return jnp.sum(jnp.sin(encoder.apply({"params": parameters}, *arguments)))

    evaluate = jax.jit(jax.value_and_grad(total), static_argnums=1)
    value, gradient = evaluate(parameters, ENCODER)
    other_value, other_gradient = evaluate(parameters, CrossEncoder(SIZE, jnp.float32, remat=remat, unroll=True))
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other_gradient, gradient)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A key's bias shifts all logits of a query alike, which softmax ignores. Every other parameter matters.
        assert np.abs(leaf).max() > 1e-5 or name.endswith("key/bias"), name


def test_padding_on_either_side_has_no_influence(parameters: oracles.Tree) -> None:
    full = np.asarray(cross({"params": parameters}, TOKENS, MASK, CONTEXT, CONTEXT_MASK))
    tokens = np.where(MASK[..., None], TOKENS, np.float32(9))
    context = np.where(CONTEXT_MASK[..., None], CONTEXT, np.float32(-9))
    changed = np.asarray(cross({"params": parameters}, tokens, MASK, context, CONTEXT_MASK))
    np.testing.assert_allclose(changed[MASK], full[MASK], rtol=1e-5, atol=2e-6)
    assert np.abs(changed[~MASK] - full[~MASK]).max() > 1e-2


def test_every_context_token_has_an_influence(parameters: oracles.Tree) -> None:
    full = np.asarray(cross({"params": parameters}, TOKENS, MASK, CONTEXT, CONTEXT_MASK))
    for place in range(6):
        context = CONTEXT.copy()
        context[1, place] *= -1
        changed = np.asarray(cross({"params": parameters}, TOKENS, MASK, context, CONTEXT_MASK))
        assert np.abs(changed[1, 0] - full[1, 0]).max() > 1e-3
        np.testing.assert_array_equal(changed[0], full[0])


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize(("triple", "masked"), [(TEXT_READS_IMAGE, True), (IMAGE_READS_TEXT, False)])
def test_triples_equal_the_three_passes_by_themselves(layers: int, triple: Triple, masked: bool) -> None:
    """Outputs, and gradients of parameters, tokens and context; with recomputation and loops written out, too."""
    size = CrossEncoderConfig(layers=layers, width=12, heads=3, mlp_width=20)
    mask = jnp.array(np.arange(4) < np.array([[4], [2], [3]] * 2)) if masked else None
    context_mask = None if masked else jnp.array(np.arange(5) < np.array([[3], [5]] * 3))
    wanted = jnp.array([[0, 2], [0, 1], [0, 0]])
    inputs = (jnp.array(normal(3, 6, 4, 12)), jnp.array(normal(4, 6, 5, 16)))
    shapes = jax.eval_shape(CrossEncoder(size, jnp.float32).init, jax.random.key(0), inputs[0], mask, inputs[1], None)
    weights = oracles.random_parameters(shapes["params"], 5)

    def shared(encoder: CrossEncoder, weights: Any, tokens: jax.Array, context: jax.Array) -> jax.Array:
        rows = (wanted, tokens, mask, context, context_mask)
        own, others = encoder.apply({"params": weights}, *rows, method="triples")
        return jnp.concatenate([own, others], axis=1)

    def one_by_one(encoder: CrossEncoder, weights: Any, tokens: jax.Array, context: jax.Array) -> jax.Array:
        hidden = []
        for query_row, context_row, positions in zip(*triple, (wanted, wanted[:, :1], wanted[:, :1]), strict=True):
            queries, of_context = (tokens, mask), (context, context_mask)
            rows = [None if array is None else array[query_row::2] for array in queries]
            rows += [None if array is None else array[context_row::2] for array in of_context]
            hidden.append(encoder.apply({"params": weights}, *rows, positions))
        return jnp.concatenate(hidden, axis=1)

    def outcome(passes: Callable[..., jax.Array], remat: str = "none", unroll: bool = False) -> Any:
        encoder = CrossEncoder(size, jnp.float32, remat, unroll, triple)

        def total(*inputs: Any) -> tuple[jax.Array, jax.Array]:
            hidden = passes(encoder, *inputs)
            return jnp.sum(jnp.sin(hidden)), hidden

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(weights, *inputs)

    expected = outcome(one_by_one)
    for remat in REMAT_WORDS:
        found = outcome(shared, remat, unroll=remat != "none")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
