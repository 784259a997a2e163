"""GCPR against its oracle, its gradients, its invariances and values worked out by hand."""

import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from safetensors.numpy import load_file

from r2d2_jax.losses.contrastive import gcpr, ground_truth, similarity_logits, weighted_cross_entropy
from r2d2_jax.losses.matching import negative_logits

REFERENCE = Path(os.environ.get("R2D2_REFERENCE_DIR", Path(__file__).parents[2] / "../shared/reference/tiny"))


def mean_gcpr(image: jax.Array, text: jax.Array, positive: jax.Array, temperature: jax.Array) -> jax.Array:
    i2t, t2i = similarity_logits(image, text, temperature), similarity_logits(text, image, temperature)
    return jnp.mean(gcpr(i2t, t2i, positive))


compiled = jax.jit(mean_gcpr)  # one compilation per batch size, where eager operations would each compile


def loss_of(image: np.ndarray, text: np.ndarray, positive: np.ndarray, temperature: float) -> jax.Array:
    return compiled(jnp.array(image), jnp.array(text), jnp.array(positive), jnp.float32(temperature))


def units(seed: int, rows: int, size: int = 5) -> np.ndarray:
    feature = np.random.default_rng(seed).normal(size=(rows, size))
    return (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)


def same(ids: list[int]) -> np.ndarray:
    return np.array(ids)[:, None] == np.array(ids)[None, :]


@pytest.mark.parametrize("temperature", [0.001, 0.07, 0.5])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 0, 1], [7, 7, 7, 7, 7, 7], [0]])
def test_gcpr_equals_oracle(ids: list[int], temperature: float) -> None:
    image, text, positive = units(0, len(ids)), units(1, len(ids)), same(ids)
    expected = oracles.gcpr(image, text, positive, temperature)
    np.testing.assert_allclose(loss_of(image, text, positive, temperature), expected, rtol=1e-5, atol=1e-5)


def test_gcpr_gradient_reaches_both_sides_and_the_temperature() -> None:
    image, text, positive, temperature = units(2, 4), units(3, 4), same([0, 1, 0, 2]), np.float32(0.2)
    gradients = jax.jit(jax.grad(mean_gcpr, argnums=(0, 1, 3)))(
        jnp.array(image), jnp.array(text), jnp.array(positive), jnp.array(temperature)
    )
    expected = (
        oracles.numerical_gradient(lambda x: oracles.gcpr(x, text, positive, 0.2), image),
        oracles.numerical_gradient(lambda x: oracles.gcpr(image, x, positive, 0.2), text),
        oracles.numerical_gradient(lambda x: oracles.gcpr(image, text, positive, float(x)), np.array(0.2)),
    )
    for gradient, reference in zip(gradients, expected, strict=True):
        assert np.abs(reference).max() > 1e-2
        np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-5)


def test_gcpr_does_not_depend_on_the_order_of_the_batch() -> None:
    image, text, positive = units(4, 6), units(5, 6), same([0, 1, 2, 0, 3, 1])
    order = np.array([4, 2, 0, 5, 1, 3])
    loss = loss_of(image, text, positive, 0.07)
    shuffled = loss_of(image[order], text[order], positive[order][:, order], 0.07)
    np.testing.assert_allclose(shuffled, loss, rtol=1e-6)
    assert abs(loss_of(image[order], text, positive, 0.07) - loss) > 0.1  # the pairs themselves do matter


def test_gcpr_is_symmetric_in_images_and_texts() -> None:
    image, text, positive = units(6, 6), units(7, 6), same([0, 1, 1, 2, 3, 4])
    np.testing.assert_allclose(loss_of(text, image, positive, 0.1), loss_of(image, text, positive, 0.1), rtol=1e-6)


def test_gcpr_by_hand() -> None:
    basis, nothing_shared = np.eye(3), np.eye(3, dtype=bool)
    # Three perfect, orthogonal pairs: each row is log(1 + 2 exp(-1 / temperature)).
    np.testing.assert_allclose(loss_of(basis, basis, nothing_shared, 1.0), 0.5514447, rtol=1e-6)
    np.testing.assert_allclose(loss_of(basis, basis, nothing_shared, 0.5), 0.2395448, rtol=1e-6)
    # Captions 0 and 1 of the same image, and another pair: rows log(2 + 1/e) twice and log(1 + 2/e) once.
    embed = basis[[0, 0, 2]]
    expected = (2 * math.log(2 + 1 / math.e) + math.log(1 + 2 / math.e)) / 3
    np.testing.assert_allclose(loss_of(embed, embed, same([0, 0, 1]), 1.0), expected, rtol=1e-6)
    # Nothing to tell apart: log b.
    np.testing.assert_allclose(loss_of(basis[[0, 0, 0]], basis[[0, 0, 0]], nothing_shared, 1.0), math.log(3), rtol=1e-6)


def test_positives_share_the_mass_equally() -> None:
    target = ground_truth(jnp.array([[True, False, True, False], [False, True, False, False], [True] * 4]))
    np.testing.assert_array_equal(target, [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.25] * 4])


def test_similarity_logits_are_float32_and_divided_by_the_temperature() -> None:
    row, key = units(8, 2), units(9, 3)
    logits = similarity_logits(jnp.array(row), jnp.array(key), jnp.array(0.05))
    expected = [[float(np.dot(r.astype(np.float64), k)) / 0.05 for k in key] for r in row]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_weights_scale_the_terms_of_their_keys_exactly() -> None:
    rng = np.random.default_rng(10)
    logits, target = rng.normal(size=(3, 4)).astype(np.float32), rng.dirichlet(np.ones(4), size=3).astype(np.float32)
    valid = jnp.ones(4, bool)

    weighted = jax.jit(lambda *arguments: jnp.mean(weighted_cross_entropy(*arguments)))

    def loss(weight: list[float]) -> float:
        return float(weighted(jnp.array(logits), jnp.array(target), jnp.array(weight), valid))

    single = [loss(list(row)) for row in np.eye(4)]
    terms = [-np.mean([target[i, j] * oracles.log_softmax(logits[i])[j] for i in range(3)]) for j in range(4)]
    np.testing.assert_allclose(single, terms, rtol=1e-5)
    assert loss([0.0, 0.5, 0.0, 0.0]) == 0.5 * single[1]  # a half is exact in binary
    np.testing.assert_allclose(loss([1.0, 0.99, 0.5, 0.0]), np.dot([1, 0.99, 0.5, 0], single), rtol=1e-6)


def test_invalid_keys_enter_neither_the_sum_nor_the_softmax() -> None:
    logits, target = jnp.array([[1.0, 2.0, 1e30, -1e30]]), jnp.array([[0.25, 0.75, 0.0, 0.0]])
    valid = jnp.array([True, True, False, False])
    weight = jnp.array([1.0, 0.5, 1e30, -1e30])
    evaluate = jax.jit(jax.value_and_grad(lambda *arguments: weighted_cross_entropy(*arguments)[0]))
    few, few_gradient = evaluate(logits[:, :2], target[:, :2], weight[:2], valid[:2])
    value, gradient = evaluate(logits, target, weight, valid)
    assert value == few
    np.testing.assert_array_equal(gradient, jnp.pad(few_gradient, ((0, 0), (0, 2))))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(Exception, match="(?s)gcpr.*positive"):
        gcpr(jnp.ones((3, 4)), jnp.ones((3, 4)), jnp.ones((3, 2), bool))


def reference() -> tuple[dict[str, np.ndarray], float]:
    """The expected values, and the temperature that their weights imply: log w_ij - log w_ik = (c_ij - c_ik) / T."""
    if not (REFERENCE / "expected.safetensors").exists():
        pytest.skip(f"no reference values in {REFERENCE}; name their folder in R2D2_REFERENCE_DIR")
    values = load_file(REFERENCE / "expected.safetensors")
    cosine = values["image_embed"].astype(np.float64) @ values["text_embed"].T
    cosines, logarithms = [], []
    for row, weights in zip(cosine, values["negative_weights_i2t"].astype(np.float64), strict=True):
        kept = weights > 0
        cosines.append(row[kept] - row[kept].mean())
        logarithms.append(np.log(weights[kept]) - np.log(weights[kept]).mean())
    slope = np.linalg.lstsq(np.concatenate(cosines)[:, None], np.concatenate(logarithms), rcond=None)[0][0]
    return values, float(1 / slope)


@pytest.mark.parity
def test_gcpr_equals_the_published_value() -> None:
    values, temperature = reference()
    positive = same(list(values["pair_id"]))
    assert positive.sum() > len(positive), "the reference batch should show one image twice"
    loss = loss_of(values["image_embed"], values["text_embed"], positive, temperature)
    np.testing.assert_allclose(loss, values["loss_gcpr"], rtol=1e-5, atol=1e-5)


@pytest.mark.parity
def test_negative_weights_equal_the_published_ones() -> None:
    """The published rows are not normalised again after the same image is set to 0; our row-softmax is."""
    values, temperature = reference()
    positive = jnp.array(same(list(values["pair_id"])))
    image, text = jnp.array(values["image_embed"]), jnp.array(values["text_embed"])
    for name, rows, columns in (("i2t", image, text), ("t2i", text, image)):
        published = values[f"negative_weights_{name}"]
        logits = similarity_logits(rows, columns, jnp.float32(temperature))
        ours = jax.nn.softmax(negative_logits(logits, positive), axis=1)
        np.testing.assert_allclose(ours, published / published.sum(1, keepdims=True), rtol=1e-5, atol=1e-5)
        unnormalised = np.where(positive, 0, jax.nn.softmax(logits, axis=1))
        np.testing.assert_allclose(unnormalised, published, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
def test_published_embeds_have_unit_norm() -> None:
    values, _ = reference()
    sizes = json.loads((REFERENCE / "sizes.json").read_text())
    assert values["image_embed"].shape == (sizes["batch"], sizes["embed_dim"])
    for name in ("image_embed", "text_embed"):
        np.testing.assert_allclose(np.linalg.norm(values[name], axis=1), 1, rtol=1e-5)
