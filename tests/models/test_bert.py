"""The text tower and the masked-language-model head against their oracles; padding."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.config.model import TextTowerConfig
from r2d2_jax.models.bert import BertLayer, MaskedLmHead, TextEncoder

SIZE = TextTowerConfig(vocabulary_size=30, text_length=7, width=12, layers=2, heads=3, mlp_width=20, max_positions=16)
LENGTHS = np.array([7, 4, 2])
MASK = np.arange(7) < LENGTHS[:, None]
INPUT_IDS = np.random.default_rng(0).integers(1, 30, (3, 7)).astype(np.int32) * MASK
ENCODER = TextEncoder(SIZE, jnp.float32)
encode = jax.jit(ENCODER.apply)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def parameters() -> oracles.Tree:
    shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), jnp.array(INPUT_IDS), jnp.array(MASK))["params"]
    return oracles.random_parameters(shapes, 1)


def test_bert_layer_equals_oracle() -> None:
    hidden = normal(2, 3, 7, 12)
    module = BertLayer(SIZE, jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), hidden, MASK)["params"]
    weights = oracles.random_parameters(shapes, 3)
    result, _ = jax.jit(module.apply)({"params": weights}, hidden, MASK)
    np.testing.assert_allclose(result, oracles.bert_layer(weights, hidden, MASK, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["attention_norm", "mlp_norm"])
def test_the_epsilon_of_both_norms_is_that_of_bert(norm: str) -> None:
    """With nothing added to tokens of variance 1e-12, the epsilon 1e-12 is half of the sum."""
    module = BertLayer(SIZE, jnp.float32)
    hidden = normal(4, 3, 7, 12) * np.float32(1e-6 if norm == "attention_norm" else 1)
    weights = oracles.random_parameters(jax.eval_shape(module.init, jax.random.key(0), hidden, MASK)["params"], 5)
    for last in (weights["attention"]["out"], weights["mlp"]["down"]):
        last["kernel"] *= 0
        last["bias"] *= 0
    if norm == "mlp_norm":
        weights["attention_norm"]["norm"]["scale"] *= np.float32(1e-6)
        weights["attention_norm"]["norm"]["bias"] *= 0
    result, _ = jax.jit(module.apply)({"params": weights}, hidden, MASK)
    np.testing.assert_allclose(result, oracles.bert_layer(weights, hidden, MASK, 3), rtol=1e-4, atol=1e-5)


def test_text_encoder_equals_oracle(parameters: oracles.Tree) -> None:
    tokens = encode({"params": parameters}, INPUT_IDS, MASK)
    assert tokens.shape == (3, 7, 12)
    expected = oracles.text_encoder(parameters, INPUT_IDS, MASK, layers=2, heads=3)
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=2e-5)


def test_padding_has_no_influence_on_the_text(parameters: oracles.Tree) -> None:
    tokens = encode({"params": parameters}, INPUT_IDS, MASK)
    other = np.where(MASK, INPUT_IDS, 17).astype(np.int32)
    longer = np.pad(INPUT_IDS, ((0, 0), (0, 4)), constant_values=5)
    for ids, mask in ((other, MASK), (longer, np.pad(MASK, ((0, 0), (0, 4))))):
        changed = np.asarray(encode({"params": parameters}, ids, mask))[:, :7]
        np.testing.assert_allclose(changed[MASK], np.asarray(tokens)[MASK], rtol=1e-5, atol=2e-6)


def test_every_real_token_has_an_influence_on_cls(parameters: oracles.Tree) -> None:
    cls = np.asarray(encode({"params": parameters}, INPUT_IDS, MASK))[0, 0]
    for place in range(7):
        ids = INPUT_IDS.copy()
        ids[0, place] = ids[0, place] % 29 + 1
        assert np.abs(np.asarray(encode({"params": parameters}, ids, MASK))[0, 0] - cls).max() > 1e-3


def test_masked_lm_head_equals_oracle_and_is_tied() -> None:
    tokens, embedding = normal(6, 2, 3, 12), normal(7, 30, 12)
    module = MaskedLmHead(30, jnp.float32)
    weights = oracles.random_parameters(jax.eval_shape(module.init, jax.random.key(0), tokens, embedding)["params"], 8)
    logits = jax.jit(module.apply)({"params": weights}, tokens, embedding)
    assert logits.dtype == jnp.float32
    assert logits.shape == (2, 3, 30)
    np.testing.assert_allclose(logits, oracles.masked_lm_head(weights, tokens, embedding), rtol=1e-5, atol=2e-5)
    assert set(weights) == {"transform", "transform_norm", "bias"}  # no decoder matrix of its own
