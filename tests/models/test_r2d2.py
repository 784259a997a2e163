"""The whole model: against oracles, its variants' parameters, padding, dtypes, and options that must change nothing."""

import collections
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.config.model import CrossEncoderConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from r2d2_jax.models.cross_encoder import cls_of
from r2d2_jax.models.r2d2 import CLIP_DEVIATION, CLIP_MEAN, R2D2, normalise_images
from r2d2_jax.planning.hlo import parse
from r2d2_jax.planning.work import operations

CONFIG = ModelConfig(
    image=ImageTowerConfig(image_size=8, patch_size=4, width=16, layers=2, heads=4, mlp_width=24),
    text=TextTowerConfig(30, text_length=9, width=12, layers=2, heads=3, mlp_width=20, max_positions=10),
    cross=CrossEncoderConfig(layers=3, width=12, heads=2, mlp_width=20),
    embed_size=10,
    dtype="float32",
)
MODEL = R2D2(CONFIG)
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
LENGTH = 6  # of the longest text; the texts are padded to three tokens more, with ids that mean something elsewhere
MASK = np.arange(LENGTH + 3) < np.array([[6], [4], [3]])
INPUT_IDS = np.random.default_rng(1).integers(1, 30, MASK.shape).astype(np.int32)

TOWERS = {"image_encoder", "text_encoder", "image_projection", "text_projection", "temperature"}
TEXT_IMAGE = {"text_image_encoder"}
MATCHING = {"image_text_encoder", "image_text_projection", "text_image_match_head", "image_text_match_head"}
MASKED_LM = {"masked_lm_head"}


def shapes(model: R2D2) -> oracles.Tree:
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES, INPUT_IDS, MASK)["params"]


@pytest.fixture(scope="module")
def parameters() -> oracles.Tree:
    return oracles.random_parameters(shapes(MODEL), 2)


def forward(model: R2D2, parameters: oracles.Tree, images: Any, input_ids: Any, mask: Any) -> dict[str, jax.Array]:
    """Every output of every stage."""
    weights = {"params": parameters}
    image = model.apply(weights, images, method="encode_image")
    text = model.apply(weights, input_ids, mask, method="encode_text")
    pair = (text.tokens, mask, image.tokens)
    text_image = model.apply(weights, *pair, method="cross_text_image")
    image_text = model.apply(weights, *pair, method="cross_image_text")
    return {
        "image_tokens": image.tokens,
        "image_feature": image.feature,
        "image_embed": image.embed,
        "text_tokens": text.tokens,
        "text_feature": text.feature,
        "text_embed": text.embed,
        "text_image": text_image,
        "image_text": image_text,
        "match": model.apply(weights, text_image[:, 0], image_text[:, 0], method="match_logits"),
        "masked_lm": model.apply(weights, text_image, method="masked_lm_logits"),
    }


run = jax.jit(forward, static_argnums=0)


@pytest.fixture(scope="module")
def outputs(parameters: oracles.Tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in run(MODEL, parameters, IMAGES, INPUT_IDS, MASK).items()}


BY_TEXT_TOKEN = ("text_tokens", "text_image", "masked_lm")


def test_every_stage_equals_its_oracle(parameters: oracles.Tree, outputs: dict[str, np.ndarray]) -> None:
    """The oracle reads the texts without the common padding, so this also shows that more padding changes nothing."""
    mask = MASK[:, :LENGTH]
    image = oracles.image_encoder(parameters["image_encoder"], IMAGES, 4, layers=2, heads=4)
    text = oracles.text_encoder(parameters["text_encoder"], INPUT_IDS[:, :LENGTH], mask, layers=2, heads=3)
    features = {
        "image": oracles.dense(parameters["image_projection"], image[:, 0]),
        "text": oracles.dense(parameters["text_projection"], text[:, 0]),
    }
    queries = oracles.dense(parameters["image_text_projection"], image)
    text_image = oracles.cross_encoder(parameters["text_image_encoder"], text, mask, image, None, layers=3, heads=2)
    image_text = oracles.cross_encoder(parameters["image_text_encoder"], queries, None, text, mask, layers=3, heads=2)
    match = np.stack(
        [
            oracles.dense(parameters["text_image_match_head"], text_image[:, 0]),
            oracles.dense(parameters["image_text_match_head"], image_text[:, 0]),
        ],
        axis=1,
    )
    words = parameters["text_encoder"]["word_embedding"]["embedding"]
    expected = {
        "image_tokens": image,
        "image_feature": features["image"],
        "image_embed": oracles.unit(features["image"]),
        "text_tokens": text,
        "text_feature": features["text"],
        "text_embed": oracles.unit(features["text"]),
        "text_image": text_image,
        "image_text": image_text,
        "match": match,
        "masked_lm": oracles.masked_lm_head(parameters["masked_lm_head"], text_image, words),
    }
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        result = outputs[name]
        if name in BY_TEXT_TOKEN:
            result, value = result[:, :LENGTH][mask], value[mask]
        assert result.shape == value.shape, name
        np.testing.assert_allclose(result, value, rtol=1e-4, atol=2e-5, err_msg=name)


def test_embeds_have_unit_norm(outputs: dict[str, np.ndarray]) -> None:
    for name in ("image_embed", "text_embed"):
        np.testing.assert_allclose(np.linalg.norm(outputs[name], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("unroll", [False, True])
def test_embedding_alone_is_that_of_encoding(layers: int, unroll: bool) -> None:
    """Also where CLS is alone in the only layer of a tower."""
    image, text = (dataclasses.replace(tower, layers=layers) for tower in (CONFIG.image, CONFIG.text))
    model = R2D2(dataclasses.replace(CONFIG, image=image, text=text, unroll=unroll))
    weights = {"params": oracles.random_parameters(shapes(model), 3)}
    for embed, encode, inputs in (
        ("embed_image", "encode_image", (IMAGES,)),
        ("embed_text", "encode_text", (INPUT_IDS, MASK)),
    ):
        alone, whole = (model.apply(weights, *map(jnp.asarray, inputs), method=stage) for stage in (embed, encode))
        np.testing.assert_allclose(alone.feature, whole.feature, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(alone.embed, whole.embed, rtol=1e-5, atol=1e-6)


def test_embedding_alone_multiplies_less() -> None:
    """What the last layer does not compute for all tokens but CLS: query, attention, output and MLP."""
    inputs, found = (jnp.asarray(INPUT_IDS), jnp.asarray(MASK)), []
    for stage in ("embed_text", "encode_text"):
        embed = jax.jit(lambda weights, *inputs, stage=stage: MODEL.apply(weights, *inputs, method=stage).embed)
        program = parse(embed.lower({"params": shapes(MODEL)}, *inputs).compile().as_text() or "")
        found.append(sum(each.times * (each.products + each.exact_products) for each in operations(program)))
    (texts, tokens), width, mlp = MASK.shape, CONFIG.text.width, CONFIG.text.mlp_width
    assert found[1] - found[0] == texts * (tokens - 1) * 2 * (width * width + tokens * width + width * mlp)


def test_padding_has_no_influence_on_any_output(parameters: oracles.Tree, outputs: dict[str, np.ndarray]) -> None:
    other = np.where(MASK, INPUT_IDS, (INPUT_IDS + 7) % 30).astype(np.int32)
    changed = run(MODEL, parameters, IMAGES, other, MASK)
    for name, value in outputs.items():
        real = MASK if name in BY_TEXT_TOKEN else slice(None)
        np.testing.assert_allclose(np.asarray(changed[name])[real], value[real], rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.abs(np.asarray(changed["text_tokens"])[~MASK] - outputs["text_tokens"][~MASK]).max() > 0.1


def test_rows_do_not_see_each_other(parameters: oracles.Tree, outputs: dict[str, np.ndarray]) -> None:
    order = np.array([2, 0, 1])
    shuffled = run(MODEL, parameters, IMAGES[order], INPUT_IDS[order], MASK[order])
    for name, value in outputs.items():
        np.testing.assert_allclose(shuffled[name], value[order], rtol=1e-5, atol=1e-5, err_msg=name)


def test_match_logits_depend_on_both_sides(parameters: oracles.Tree, outputs: dict[str, np.ndarray]) -> None:
    """Both encoders answer differently to another image and to another text."""
    order = np.array([1, 2, 0])
    for images, ids, mask in ((IMAGES[order], INPUT_IDS, MASK), (IMAGES, INPUT_IDS[order], MASK[order])):
        changed = np.asarray(run(MODEL, parameters, images, ids, mask)["match"])
        assert (np.abs(changed - outputs["match"]).max(axis=(0, 2)) > 1e-3).all()


def test_match_reads_cls_alone(parameters: oracles.Tree, outputs: dict[str, np.ndarray]) -> None:
    """`match` computes the last cross layers for CLS only."""
    tokens = (jnp.array(outputs["text_tokens"]), jnp.array(MASK), jnp.array(outputs["image_tokens"]))
    np.testing.assert_array_equal(cls_of(tokens[0]), [[0], [0], [0]])
    match = jax.jit(MODEL.apply, static_argnames="method")({"params": parameters}, *tokens, method="match")
    np.testing.assert_allclose(match, outputs["match"], rtol=1e-5, atol=1e-5)


def test_the_image_feature_can_be_made_from_tokens_alone(
    parameters: oracles.Tree, outputs: dict[str, np.ndarray]
) -> None:
    """A teacher that shares the image tower projects its tokens only."""
    feature = MODEL.apply({"params": parameters}, jnp.array(outputs["image_tokens"]), method="project_image")
    np.testing.assert_allclose(feature, outputs["image_feature"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("remat", "unroll", "recomputing"),
    [("none", True, 0), ("all", False, 4 + 2), ("image:products", False, 1), ("text:all,cross:products", False, 3 + 2)],
)
def test_remat_and_unroll_reach_the_encoders(remat: str, unroll: bool, recomputing: int) -> None:
    """Two towers and two cross encoders: four stacks and two last layers. That neither option changes a value is tested
    where the stack is made and on one cross encoder."""
    model = R2D2(dataclasses.replace(CONFIG, remat=remat, unroll=unroll))
    assert jax.tree.map(jnp.shape, shapes(model)) == jax.tree.map(jnp.shape, shapes(MODEL))
    arguments = (shapes(MODEL), *map(jnp.array, (IMAGES, INPUT_IDS, MASK)))
    program = str(jax.make_jaxpr(lambda *a: forward(model, *a))(*arguments))
    assert program.count("scan[") == 4
    assert len(re.findall(r"\bunroll=1\b", program)) == (0 if unroll else 4)
    assert len(re.findall(r"\b(?:remat2|checkpoint)\[", program)) == recomputing


def test_only_the_chosen_stacks_multiply_again_and_gradients_stay(parameters: oracles.Tree) -> None:
    """Multiply-adds of the compiled gradient that repeat some of the forward.

    Of each layer of a tower recomputed whole, all but the MLP's second product, which no gradient reads; where products
    with parameters are stored, the two within its attention.
    """

    def total(parameters: oracles.Tree, model: R2D2) -> jax.Array:
        outputs = forward(model, parameters, *map(jnp.asarray, (IMAGES, INPUT_IDS, MASK)))
        return sum(jnp.sum(jnp.sin(outputs[name])) for name in ("image_embed", "text_embed", "match", "masked_lm"))

    def gradient(remat: str) -> tuple[oracles.Tree, dict[str, float]]:
        model = R2D2(dataclasses.replace(CONFIG, remat=remat))
        compiled = jax.jit(jax.grad(total), static_argnums=1).lower(parameters, model).compile()
        again: collections.Counter[str] = collections.Counter()
        for each in operations(parse(compiled.as_text() or "")):
            if "rematted_computation" in each.op_name and each.exact_products:
                again[re.findall(r"\w+_encoder\b", each.op_name)[-1]] += each.times * each.exact_products
        return compiled(parameters), again

    def tower(rows: int, tokens: int, size: Any, *, whole: bool) -> float:
        dense = size.width * (4 * size.width + size.mlp_width) if whole else 0
        return rows * size.layers * tokens * (dense + 2 * tokens * size.width)

    expected, again = gradient("none")
    assert not again
    image, again = gradient("image:all")
    assert again == {"image_encoder": tower(len(IMAGES), 5, CONFIG.image, whole=True)}
    others, again = gradient("text:products,cross:all")
    assert again.keys() == {"text_encoder", "text_image_encoder", "image_text_encoder"}
    assert again["text_encoder"] == tower(*MASK.shape, CONFIG.text, whole=False)
    for found in (image, others):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_bfloat16_keeps_float32_parameters_and_results(
    parameters: oracles.Tree, outputs: dict[str, np.ndarray]
) -> None:
    model = R2D2(dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
    low = run(model, parameters, IMAGES, INPUT_IDS, MASK)
    tokens = {"image_tokens", "text_tokens", "text_image", "image_text"}
    for name, value in low.items():
        assert value.dtype == (jnp.bfloat16 if name in tokens else jnp.float32), name
    for name in ("image_embed", "text_embed"):
        np.testing.assert_allclose(np.linalg.norm(low[name], axis=1), 1, rtol=1e-6)
        assert np.sum(np.asarray(low[name]) * outputs[name], axis=1).min() > 0.995
    for name in ("match", "masked_lm"):
        np.testing.assert_allclose(low[name], outputs[name], atol=0.1 * np.abs(outputs[name]).max(), err_msg=name)


@pytest.mark.parametrize(
    ("matching", "masked_lm", "names"),
    [
        (True, True, TOWERS | TEXT_IMAGE | MATCHING | MASKED_LM),
        (True, False, TOWERS | TEXT_IMAGE | MATCHING),
        (False, True, TOWERS | TEXT_IMAGE | MASKED_LM),
        (False, False, TOWERS),  # PRD2
    ],
)
def test_only_the_parts_that_are_asked_for_have_parameters(matching: bool, masked_lm: bool, names: set[str]) -> None:
    assert set(shapes(R2D2(CONFIG, matching=matching, masked_lm=masked_lm))) == names


def test_prd2_needs_no_cross_encoder_sizes(parameters: oracles.Tree) -> None:
    model = R2D2(dataclasses.replace(CONFIG, cross=CrossEncoderConfig(0, 12, 2, 20)), matching=False, masked_lm=False)
    assert set(shapes(model)) == TOWERS
    towers = {"params": {name: parameters[name] for name in TOWERS}}
    image, text = jax.eval_shape(model.apply, towers, *map(jnp.array, (IMAGES, INPUT_IDS, MASK)))
    assert image.embed.shape == text.embed.shape == (3, 10)


def test_the_temperature_starts_where_the_configuration_says() -> None:
    model = R2D2(dataclasses.replace(CONFIG, temperature_init=0.11), matching=False, masked_lm=False)
    start = jax.jit(model.init, static_argnames="method")
    temperature = start(jax.random.key(0), jnp.zeros((1, 5, 16)), method="project_image")["params"]["temperature"]
    assert temperature.shape == ()
    assert temperature.dtype == jnp.float32
    np.testing.assert_allclose(temperature, 0.11, rtol=1e-6)


def test_images_are_normalised_with_clips_constants() -> None:
    images = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    normalised = np.asarray(normalise_images(jnp.array(images)))
    for index in np.ndindex(images.shape):
        channel = index[-1]
        expected = (int(images[index]) / 255 - CLIP_MEAN[channel]) / CLIP_DEVIATION[channel]
        assert abs(normalised[index] - expected) < 1e-5
    np.testing.assert_allclose(normalised[0, 0, 0], [-1.79226253, -1.75209713, -1.48021977], rtol=1e-5)
    np.testing.assert_allclose(normalised[0, 0, 1], [1.93033625, 2.07488384, 2.14589699], rtol=1e-5)
