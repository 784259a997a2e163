"""What the cross encoder reads for a word: against sown weights, numerical derivatives, and maps by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import VOCABULARY, random_model, with_words_head

from r2d2_jax.data.text.entities import Entity, entity_in
from r2d2_jax.data.text.tokenizer import tokenizer_of
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.attention import (
    Reading,
    attention_maps,
    attention_share,
    default_layer,
    on_picture,
    relative_attention,
    token_places,
)
from r2d2_jax.inference import Ranker
from r2d2_jax.models.layers import ATTENTION, ATTENTION_CHANGE
from r2d2_jax.models.r2d2 import normalise_images

TEXT = "大红圆小蓝"
ENTITY = entity_in(TEXT, "红圆")
PLACES = [False, False, True, True, False, False, False]


@pytest.fixture(scope="module")
def model() -> Ranker:
    return Ranker(random_model(tokens=VOCABULARY), batch_size=2)


@pytest.fixture(scope="module")
def spelling() -> Ranker:
    """With the head of masked words."""
    return Ranker(with_words_head(random_model(tokens=VOCABULARY)), batch_size=2)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)


@functools.lru_cache
def stage_of(model: Ranker):
    """(images, ids, mask, change of every weight) -> (log-odds [b], sown weights), by the module itself."""
    module, params = model.model.module, model.model.params

    def stage(images: jax.Array, ids: jax.Array, mask: jax.Array, change: jax.Array):
        image = module.apply({"params": params}, normalise_images(images), method="encode_image").tokens
        text = module.apply({"params": params}, ids, mask, method="encode_text").tokens
        known = {"params": params, ATTENTION_CHANGE: in_layers(change)}
        return module.apply(known, text, mask, image, method="text_image_log_odds", mutable=[ATTENTION])

    return jax.jit(stage)


def stage(model: Ranker, images: np.ndarray, texts: list[str], change: np.ndarray):
    return stage_of(model)(jnp.array(images), *map(jnp.array, model.tokenizer(texts)), jnp.array(change))


def sown(stored: dict) -> np.ndarray:
    """[b k h l n] of the two layers."""
    stacks = stored[ATTENTION]["text_image_encoder"]
    scanned, last = (stacks[name]["cross_attention"]["weights"][0] for name in ("layers", "last_layer"))
    return np.moveaxis(np.concatenate([scanned, last[None]]), 0, 1)


def in_layers(weights: jax.Array) -> dict:
    stacked = jnp.moveaxis(weights, 1, 0)
    parts = {"layers": stacked[:-1], "last_layer": stacked[-1]}
    return {"text_image_encoder": {name: {"cross_attention": {"weights": part}} for name, part in parts.items()}}


def test_weights_are_those_of_the_module_whatever_the_batch(model: Ranker, images: np.ndarray) -> None:
    texts = [TEXT, "圆", "大方"]
    weights, gradient = model.attention(images, texts)
    _, stored = stage(model, images, texts, np.zeros_like(weights))
    assert weights.shape == gradient.shape == (3, 2, 1, 7, 10)
    np.testing.assert_allclose(weights, sown(stored), atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    one, _ = model.attention(images[0], texts)
    np.testing.assert_allclose(one[0], weights[0], atol=1e-6)


def test_gradient_is_the_derivative_of_the_match(model: Ranker, images: np.ndarray) -> None:
    _, gradient = model.attention(images[:1], [TEXT])
    step = 0.05
    for place in [(0, 0, 0, 2, 3), (0, 0, 0, 0, 0), (0, 0, 0, 5, 9), (0, 1, 0, 0, 4)]:
        both = []
        for sign in (1, -1):
            change = np.zeros_like(gradient)
            change[place] = sign * step
            both.append(float(stage(model, images[:1], [TEXT], change)[0][0]))
        assert gradient[place] == pytest.approx((both[0] - both[1]) / (2 * step), rel=0.02, abs=1e-5)
        assert gradient[place] != 0
    assert not np.any(gradient[0, 1, :, 1:])  # of the last layer the match reads CLS alone


def test_no_pair_gives_no_attention(model: Ranker) -> None:
    weights, gradient = model.attention([], [])
    assert weights.shape == gradient.shape == (0, 2, 1, 7, 10)


@pytest.mark.parametrize("layer", [1, 2])
def test_plain_maps_are_the_mean_over_heads_and_tokens(model: Ranker, images: np.ndarray, layer: int) -> None:
    (found,) = attention_maps(model, images[0], [TEXT], [ENTITY], Reading.PLAIN, layer)
    attention = model.attention(images[0], [TEXT])[0][0, layer - 1].mean(axis=0)[PLACES].mean(axis=0)
    assert found.entity == ENTITY
    assert found.cls_share == pytest.approx(attention[0])
    np.testing.assert_allclose(found.patches.reshape(-1), attention[1:] / attention[1:].sum(), rtol=1e-5)


def test_gradient_weighted_maps_keep_what_raises_the_match(model: Ranker, images: np.ndarray) -> None:
    (found,) = attention_maps(model, images[0], [TEXT], [ENTITY], Reading.GRADIENT_WEIGHTED)
    weights, gradient = (each[0, 0] for each in model.attention(images[0], [TEXT]))
    expected = (weights * np.where(gradient > 0, gradient, 0)).mean(axis=0)[PLACES, 1:].mean(axis=0)
    np.testing.assert_allclose(found.patches.reshape(-1), expected / expected.sum(), rtol=1e-5)


def test_relative_maps_mask_the_words_and_compare_with_the_others(model: Ranker, images: np.ndarray) -> None:
    """Each entity of several has its own masked text and, here, its own picture."""
    entities = [ENTITY, entity_in(TEXT, "小")]
    found = attention_maps(model, images[:2], [TEXT] * 2, entities)
    ids, mask = model.tokenizer([TEXT] * 2)
    for row, places in enumerate([PLACES, [False] * 4 + [True, False, False]]):
        ids[row, places] = model.tokenizer.mask_id
        weights, _ = model.attention(images[row], ids[row], mask[row])
        attention = weights[0, 1].mean(axis=0)[:, 1:]
        own, rest = attention[places].mean(axis=0), attention[~np.array(places)].mean(axis=0)
        expected = np.array([max(0.0, a * np.log(a / b)) for a, b in zip(own, rest, strict=True)])
        np.testing.assert_allclose(found[row].patches.reshape(-1), expected / expected.sum(), rtol=1e-3, atol=1e-6)
        assert found[row].patches.shape == (3, 3)


def test_relative_attention_leaves_padding_and_what_all_tokens_read() -> None:
    own, others = np.array([[0.6, 0.2, 0.2], [0.4, 0.2, 0.4]]), np.array([[0.1, 0.6, 0.3]])
    np.testing.assert_allclose(relative_attention(own, others), [0.5 * np.log(5), 0, 0], atol=1e-9)
    assert not relative_attention(own, own).any()


def test_tokens_of_a_part_of_a_text() -> None:
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"红圆狗.", "iph", "##one")
    tokenizer = tokenizer_of(vocabulary, 8)
    cases = {
        ("红圆", "圆"): [2],
        ("红 iPhone狗", "iPhone"): [2, 3],  # several tokens of one word
        ("红 iPhone狗", "hon"): [2, 3],  # a part of it touches both
        ("红龘圆", "龘"): [2],  # not in the vocabulary
        ("红…狗", "…狗"): [2, 3, 4, 5],  # one character becomes three tokens
        ("圆圆圆圆圆圆红红", "圆圆红"): [1, 2, 3, 4, 5, 6][4:],  # cut in the middle
    }
    for (text, words), expected in cases.items():
        start = text.rindex(words)
        found = token_places(tokenizer, text, Entity(words, start, start + len(words)))
        assert np.flatnonzero(found).tolist() == expected, text


@pytest.mark.parametrize(("text", "start"), [("圆圆圆圆圆圆红", 6), ("圆 圆", 1)])
def test_a_part_without_tokens_is_refused(text: str, start: int) -> None:
    with pytest.raises(UserError, match="is not among the 7 tokens that the model reads of the text"):
        token_places(tokenizer_of(VOCABULARY, 7), text, Entity(text[start], start, start + 1))


def test_layers(model: Ranker, images: np.ndarray) -> None:
    assert [default_layer(layers, Reading.RELATIVE) for layers in (1, 2, 6)] == [1, 2, 6]
    assert [default_layer(layers, Reading.GRADIENT_WEIGHTED) for layers in (1, 2, 6)] == [1, 1, 3]
    for layer in (0, 3):
        with pytest.raises(UserError, match=f"layer is {layer}; the model's cross encoder has layers 1 to 2"):
            attention_maps(model, images[0], [TEXT], [ENTITY], layer=layer)
    with pytest.raises(UserError, match="layer 2 is the last one, of which the match reads CLS alone"):
        attention_maps(model, images[0], [TEXT], [ENTITY], Reading.GRADIENT_WEIGHTED, 2)


def test_occlusion_is_the_fall_of_the_words_log_probability(spelling: Ranker, images: np.ndarray) -> None:
    """Patch by patch against the module itself; the words are masked, and what counts is what stood there."""
    found = attention_maps(spelling, images[:2], [TEXT] * 2, [ENTITY] * 2, Reading.OCCLUSION)
    module, known = spelling.model.module, {"params": jax.tree.map(jnp.array, spelling.model.params)}
    ids, mask = spelling.tokenizer([TEXT])
    read = jnp.array(np.where(PLACES, spelling.tokenizer.mask_id, ids))
    text = module.apply(known, read, jnp.array(mask), method="encode_text").tokens

    def log_probability(pixels: np.ndarray) -> float:
        image = module.apply(known, normalise_images(jnp.array(pixels[None])), method="encode_image").tokens
        tokens = module.apply(known, text, jnp.array(mask), image, method="cross_text_image")
        logits = jax.nn.log_softmax(module.apply(known, tokens, method="masked_lm_logits"))[0]
        return sum(float(logits[place, ids[0, place]]) for place in np.flatnonzero(PLACES))

    side = spelling.config.image.patch_size
    for pixels, each in zip(images, found, strict=False):
        fall = np.zeros_like(each.patches)
        for row, column in np.ndindex(*fall.shape):
            hidden = pixels.copy()
            hidden[row * side :, column * side :][:side, :side] = np.round(pixels.mean(axis=(0, 1)))
            fall[row, column] = max(0.0, log_probability(pixels) - log_probability(hidden))
        assert fall.max() > 2 * fall.min()
        np.testing.assert_allclose(each.patches, fall / fall.sum(), atol=1e-4)
        assert each.cls_share is None


def test_occlusion_has_no_layer_and_needs_the_head_of_masked_words(model: Ranker, images: np.ndarray) -> None:
    with pytest.raises(UserError, match="layer is 1, but occlusion asks the whole model"):
        attention_maps(model, images[0], [TEXT], [ENTITY], Reading.OCCLUSION, 1)
    with pytest.raises(UserError, match="the model has no masked-language-model head"):
        attention_maps(model, images[0], [TEXT], [ENTITY], Reading.OCCLUSION)


def test_no_pair_has_no_log_probability(spelling: Ranker) -> None:
    none = np.zeros((0, len(PLACES)), np.int32)
    assert spelling.token_log_probabilities([], none, none.astype(bool), none).shape == none.shape


def test_a_model_without_cross_encoders_has_no_attention(images: np.ndarray) -> None:
    model = Ranker(random_model(cross_layers=0, tokens=VOCABULARY))
    with pytest.raises(UserError, match="the model has no cross encoders"):
        attention_maps(model, images[0], [TEXT], [ENTITY])


def test_a_map_covers_the_picture_in_its_own_shape() -> None:
    patches = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    heat = on_picture(patches, 20, 60)
    assert heat.shape == (20, 60)
    assert heat.sum() == pytest.approx(1)
    assert heat[:5, 45:].min() == heat.max()  # beyond the middle of the patch nothing falls off
    assert heat[15:].max() == heat[:, :15].max() == 0
    assert not on_picture(np.zeros((2, 2), np.float32), 4, 4).any()


def test_share_inside_an_object_against_its_area() -> None:
    mask = np.zeros((4, 6), np.float32)
    mask[:2, :3] = 1
    uniform, inside = np.full((4, 6), 1 / 24), mask / 6
    assert attention_share(uniform, mask).ratio == pytest.approx(1)
    assert attention_share(inside, mask).inside == pytest.approx(1)
    assert attention_share(inside, mask).ratio == pytest.approx(4)
    assert attention_share(uniform, np.full((4, 6), 0.5, np.float32)).area == 0.5
