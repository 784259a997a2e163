"""The compiled forwards against the plain model; the filling of the last batch changes nothing."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import example
from small_model import DROPPED, random_state, small_config, small_plan, write_small_dataset, write_vocabulary

from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import load_tokenizer
from r2d2_jax.encoder import DeviceTokens, Tokens
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation import scorer as module
from r2d2_jax.evaluation.scorer import EncodedSplit, Scorer
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.preparation.writer import write_dataset
from r2d2_jax.train.plan import StepPlan

CLOSE = dict(rtol=1e-5, atol=1e-5)


def applied(plan: StepPlan, params, stage: str, *rows: np.ndarray) -> Any:
    """One stage of the plain model, without meshes or batches."""
    return jax.jit(partial(plan.task.model.apply, method=stage))({"params": params}, *rows)


def host(tokens: Tokens | None) -> np.ndarray:
    """Tokens in the order of their rows, wherever they were kept."""
    if isinstance(tokens, DeviceTokens):
        return np.asarray(tokens.values)[tokens.slot]
    assert tokens is not None
    return tokens


@pytest.fixture(scope="module")
def plan() -> StepPlan:
    """Of a model that is trained with dropout, of which no score may show anything."""
    return small_plan(small_config(DROPPED))


@pytest.fixture(scope="module")
def params(plan: StepPlan):
    return jax.tree.map(jnp.asarray, random_state(plan).params)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSplit:
    """10 images, 20 captions."""
    folder = write_small_dataset(tmp_path_factory.mktemp("dataset"), train=1)
    tokenizer = load_tokenizer(str(folder / "vocab.txt"), 10)
    return EvaluationSplit(RecordSource(folder, "validation"), tokenizer, 16)


@pytest.fixture(scope="module", params=[8, 20])
def encoded(request: pytest.FixtureRequest, plan: StepPlan, params, split: EvaluationSplit) -> EncodedSplit:
    """With batches of 8 both images and captions leave a last batch that is not full."""
    return Scorer(plan.task.model, plan.mesh, request.param).encode(params, split, keep_tokens=True)


def test_every_row_equals_the_plain_model(
    plan: StepPlan, params, split: EvaluationSplit, encoded: EncodedSplit
) -> None:
    (images,) = split.image_batches(10)
    image = applied(plan, params, "encode_image", normalise_images(jnp.asarray(images)))
    text = applied(plan, params, "encode_text", split.input_ids, split.attention_mask)
    np.testing.assert_allclose(encoded.image_embed, image.embed, **CLOSE)
    np.testing.assert_allclose(host(encoded.image_tokens), image.tokens, **CLOSE)
    np.testing.assert_allclose(encoded.text_embed, text.embed, **CLOSE)
    np.testing.assert_allclose(host(encoded.text_tokens), text.tokens, **CLOSE)
    np.testing.assert_array_equal(encoded.attention_mask, split.attention_mask)
    np.testing.assert_array_equal(encoded.pairs, split.pairs)


@pytest.mark.parametrize("images", [1, 7, 8, 9])
def test_no_image_or_caption_is_dropped(
    images: int, plan: StepPlan, params, encoded: EncodedSplit, tmp_path: Path
) -> None:
    """In batches of eight. Every other image has no caption, and still gets its embedding."""
    examples = [example(100 + number) for number in range(images)]
    silent = [dataclasses.replace(one, captions=()) if number % 2 else one for number, one in enumerate(examples)]
    write_dataset(tmp_path, {"test": silent})
    split = EvaluationSplit(RecordSource(tmp_path, "test"), load_tokenizer(str(write_vocabulary(tmp_path)), 10), 16)
    found = Scorer(plan.task.model, plan.mesh, 8).encode(params, split, keep_tokens=True)
    assert found.pairs[:, 0].tolist() == [image for image in range(0, images, 2) for _ in range(2)]
    assert len(found.text_embed) == len(found.text_tokens) == len(split.captions) == 2 * -(-images // 2)
    np.testing.assert_allclose(found.image_embed, encoded.image_embed[:images], **CLOSE)
    text = applied(plan, params, "encode_text", split.input_ids, split.attention_mask)
    np.testing.assert_allclose(found.text_embed, text.embed, **CLOSE)


def test_match_of_any_pairs(plan: StepPlan, params, encoded: EncodedSplit) -> None:
    """11 pairs in batches of 8, images and captions in any order, one pair twice."""
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.integers(0, 10, 11), rng.integers(0, 20, 11)], axis=1)
    pairs[7] = pairs[0]
    image, text = pairs.T
    tokens = host(encoded.image_tokens)[image], host(encoded.text_tokens)[text]
    logits = applied(plan, params, "match", tokens[1], encoded.attention_mask[text], tokens[0])
    probability = Scorer(plan.task.model, plan.mesh, 8).match(params, encoded, pairs)
    assert probability.shape == (11,)
    np.testing.assert_allclose(probability, match_probability(logits), **CLOSE)
    assert probability[7] == probability[0]


def test_tokens_of_a_large_split_wait_in_host_memory(
    plan: StepPlan, params, split: EvaluationSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(plan.task.model, plan.mesh, 8)
    pairs, size = np.indices((10, 20)).reshape(2, -1).T, (10 * 5 + 20 * 10) * 16 * 4
    found = []
    for limit, kind in ((size, DeviceTokens), (size - 1, np.ndarray)):
        monkeypatch.setattr(module, "TOKEN_BYTES_PER_DEVICE", limit)
        encoded = scorer.encode(params, split, keep_tokens=True)
        assert isinstance(encoded.image_tokens, kind)
        assert isinstance(encoded.text_tokens, kind)
        found.append(scorer.match(params, encoded, pairs))
    np.testing.assert_array_equal(*found)


def test_pairs_of_a_split_without_tokens_are_not_matched(plan: StepPlan, params, split: EvaluationSplit) -> None:
    scorer = Scorer(plan.task.model, plan.mesh, 8)
    with pytest.raises(ValueError, match="encoded without its tokens"):
        scorer.match(params, scorer.encode(params, split, keep_tokens=False), np.zeros((1, 2), int))


def test_tokens_are_kept_only_if_asked_for(
    plan: StepPlan, params, split: EvaluationSplit, encoded: EncodedSplit
) -> None:
    without = Scorer(plan.task.model, plan.mesh, 8).encode(params, split, keep_tokens=False)
    assert without.image_tokens is without.text_tokens is None
    np.testing.assert_allclose(without.image_embed, encoded.image_embed, **CLOSE)
    np.testing.assert_allclose(without.text_embed, encoded.text_embed, **CLOSE)


def test_each_forward_is_compiled_once(plan: StepPlan, params, split: EvaluationSplit) -> None:
    scorer = Scorer(plan.task.model, plan.mesh, 8)
    encoded = scorer.encode(params, split, keep_tokens=True)
    scorer.match(params, encoded, np.zeros((3, 2), int))
    compiled = []
    listen = lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        scorer.encode(params, split, keep_tokens=True)
        scorer.match(params, encoded, np.zeros((13, 2), int))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_a_batch_that_the_mesh_does_not_divide(plan: StepPlan) -> None:
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    with pytest.raises(UserError, match="evaluation.batch_size 12 is not a multiple of the mesh's 8 devices"):
        Scorer(plan.task.model, mesh, 12)  # type: ignore[arg-type]
