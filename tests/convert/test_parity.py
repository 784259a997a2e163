"""A published checkpoint computes here what it computes in the published PyTorch code.

Losses and gradients of the fine-tunings are in tests/tasks/test_parity.py.
"""

import functools
import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import FOLDER, reference, reference_model

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.convert.torch_r2d2 import published_places
from r2d2_jax.evaluation.ground_truth import GroundTruth
from r2d2_jax.evaluation.ranks import best_ranks, top_candidates
from r2d2_jax.evaluation.retrieval import RetrievalSettings, ranks_of
from r2d2_jax.losses.contrastive import similarity_logits
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.models.store import Model
from r2d2_jax.sharding import make_mesh
from r2d2_jax.trees import flat

pytestmark = pytest.mark.parity
HIDDEN, SCORE = 1e-4, 1e-5  # largest absolute difference, of hidden states and of scores
NOT_A_CANDIDATE = -100.0  # what the published code gives a pair that is not re-ranked


@pytest.fixture(scope="module")
def model() -> Model:
    return reference_model()


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return reference("expected.safetensors")


def apply(model: Model, *arguments: Any, method: str, params: Any = None) -> Any:
    module = R2D2(model.config, matching=True, masked_lm=False)
    return compiled(module, method)({"params": model.params if params is None else params}, *arguments)


@functools.cache
def compiled(module: R2D2, method: str) -> Any:
    return jax.jit(partial(module.apply, method=method))


def inputs(values: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array, jax.Array]:
    images = jnp.asarray(values["image"].transpose(0, 2, 3, 1))
    return images, jnp.asarray(values["input_ids"], jnp.int32), jnp.asarray(values["attention_mask"]) > 0


def differs(got: Any, want: np.ndarray) -> float:
    assert np.shape(got) == want.shape
    return float(np.max(np.abs(np.asarray(got) - want)))


def test_towers_and_cross_encoders(model: Model, expected: dict[str, np.ndarray]) -> None:
    images, input_ids, mask = inputs(expected)
    image = apply(model, images, method="encode_image")
    text = apply(model, input_ids, mask, method="encode_text")
    pair = (text.tokens, mask, image.tokens)
    assert differs(image.tokens, expected["image_hidden"]) < HIDDEN
    assert differs(image.embed, expected["image_embed"]) < HIDDEN
    assert differs(text.tokens, expected["text_hidden"]) < HIDDEN
    assert differs(text.embed, expected["text_embed"]) < HIDDEN
    assert differs(apply(model, *pair, method="cross_text_image"), expected["text_cross_hidden"]) < HIDDEN
    assert differs(apply(model, *pair, method="cross_image_text"), expected["image_cross_hidden"]) < HIDDEN


def test_match_scores(model: Model, expected: dict[str, np.ndarray]) -> None:
    images, input_ids, mask = inputs(expected)
    image, text = (apply(model, images, method="encode_image"), apply(model, input_ids, mask, method="encode_text"))
    logits = apply(model, text.tokens, mask, image.tokens, method="match")
    assert differs(match_probability(logits), expected["match_score"]) < SCORE
    probabilities = jnp.mean(jax.nn.softmax(logits, axis=-1), axis=1)
    assert differs(probabilities, expected["match_pred"]) < SCORE


def test_weights_of_hard_negatives(model: Model, expected: dict[str, np.ndarray]) -> None:
    images, input_ids, mask = inputs(expected)
    image, text = (apply(model, images, method="encode_image"), apply(model, input_ids, mask, method="encode_text"))
    other = expected["pair_id"][:, None] != expected["pair_id"][None]
    for name, rows, keys in (("i2t", image.embed, text.embed), ("t2i", text.embed, image.embed)):
        logits = similarity_logits(rows, keys, jnp.asarray(model.params["temperature"]))
        assert differs(jax.nn.softmax(logits, axis=1) * other, expected[f"negative_weights_{name}"]) < SCORE


def test_two_stage_retrieval(model: Model) -> None:
    values = reference("retrieval.safetensors")
    figures = json.loads((FOLDER / "retrieval.json").read_text())
    images, input_ids, mask = inputs(values)
    image, text = (apply(model, images, method="encode_image"), apply(model, input_ids, mask, method="encode_text"))
    cosine = np.asarray(image.embed @ text.embed.T)
    assert differs(cosine, values["cosine"]) < SCORE
    every = np.stack(np.meshgrid(range(len(images)), range(len(input_ids)), indexing="ij"), -1).reshape(-1, 2)
    logits = apply(model, text.tokens[every[:, 1]], mask[every[:, 1]], image.tokens[every[:, 0]], method="match")
    probability = np.asarray(match_probability(logits)).reshape(cosine.shape)
    positive = np.arange(len(images))[:, None] == values["text_image_index"][None]
    gallery = SimpleNamespace(
        image_embed=np.asarray(image.embed),
        text_embed=np.asarray(text.embed),
        match=lambda pairs: probability[pairs[:, 0], pairs[:, 1]],
    )
    truth = GroundTruth(*positive.shape, np.argwhere(positive))
    settings = RetrievalSettings(rerank=figures["top_k"])
    streamed = ranks_of(gallery, truth, settings, make_mesh(MeshConfig(), jax.devices()[:1]))["reranked"]
    for key, way, scores, match, hits in (
        ("txt", "i2t", cosine, probability, positive),
        ("img", "t2i", cosine.T, probability.T, positive.T),
    ):
        candidates = top_candidates(scores, hits, figures["top_k"])
        final = np.full_like(scores, NOT_A_CANDIDATE)
        np.put_along_axis(final, candidates, np.take_along_axis(scores + match, candidates, axis=1), axis=1)
        assert differs(final, values[f"score_{way}"]) < SCORE
        for cutoff in (1, 5):
            for ranks in (best_ranks(final, hits), streamed[way]):  # no cut-off lies beyond the candidates
                assert 100 * np.mean(ranks < cutoff) == pytest.approx(figures[f"{key}_r{cutoff}"], abs=1e-9)


def test_every_parameter_is_read_from_the_checkpoint(model: Model) -> None:
    tensors = reference("checkpoint.pth")
    assert {path for path, _ in flat(model.params)} == {place.path for place in published_places(model.config).values()}
    assert set(tensors) == set(published_places(model.config)) | set(model.unused)
