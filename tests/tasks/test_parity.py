"""The tasks' own losses and gradients on a published checkpoint are those of the published PyTorch code."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import reference, reference_model
from small_model import MATCHING, RETRIEVAL, small_config, small_plan

from r2d2_jax.arrays import Batch
from r2d2_jax.convert.naming import to_theirs
from r2d2_jax.convert.torch_r2d2 import published_places
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.models.store import Model
from r2d2_jax.tasks import stages
from r2d2_jax.tasks.task import Task
from r2d2_jax.train.plan import StepPlan

pytestmark = pytest.mark.parity
SCORE, GRADIENT = 1e-5, 1e-3  # largest absolute difference; relative difference of the gradient of each tensor
ROUNDING = 1e-5  # of the whole gradient's norm: a key bias's gradient is mathematically zero and below it


@pytest.fixture(scope="module")
def model() -> Model:
    return reference_model()


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return reference("expected.safetensors")


@pytest.fixture(autouse=True)
def _as_published(monkeypatch: pytest.MonkeyPatch, expected: dict[str, np.ndarray]) -> None:
    """The reference's images are normalised, and its hard negatives given."""
    negatives = itertools.cycle((expected["negative_text_index"], expected["negative_image_index"]))

    def drawn(key: jax.Array, logits: jax.Array, positive: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(next(negatives), jnp.int32), jnp.ones(len(logits), bool)

    monkeypatch.setattr(stages, "sample_negatives", drawn)
    monkeypatch.setattr(R2D2, "encode_pixels", R2D2.encode_image)


def task_of(model: Model, *changes: Any) -> tuple[Task, StepPlan]:
    """The configured task around the published model, and where it runs."""
    plan = small_plan(small_config(*changes))
    task = plan.task
    object.__setattr__(task, "model", R2D2(model.config, matching=True, masked_lm=False))
    return task, plan


def loss(task: Task, plan: StepPlan, model: Model, expected: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
    """The loss with its metrics, and the gradients of the trained parts."""
    image_id = np.stack([expected["pair_id"], np.zeros_like(expected["pair_id"])], axis=1).astype(np.uint32)
    batch = Batch(
        images=jnp.asarray(expected["image"].transpose(0, 2, 3, 1)),
        input_ids=jnp.asarray(expected["input_ids"], jnp.int32),
        attention_mask=jnp.asarray(expected["attention_mask"]) > 0,
        image_id=jnp.asarray(image_id),
        label=jnp.asarray(expected["match_label"], jnp.int32),
    )
    trained = {part: jax.tree.map(jnp.asarray, model.params[part]) for part in task.trainable_parts}

    def total(trained: Any) -> tuple[jax.Array, Any]:
        step, key = jnp.int32(0), jax.random.key(0)
        result = task.loss({**model.params, **trained}, None, batch, step, key, plan.mesh)
        return result.total(), {**result.terms, **result.metrics}

    (_, metrics), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(trained)
    return metrics, gradients


def test_retrieval(model: Model, expected: dict[str, np.ndarray]) -> None:
    task, plan = task_of(model, RETRIEVAL)
    metrics, gradients = loss(task, plan, model, expected)
    for name in ("gcpr", "fgr"):
        assert float(metrics[name]) == pytest.approx(float(expected[f"loss_{name}"]), abs=SCORE)
    frozen = jax.tree.map(jnp.zeros_like, model.params["image_encoder"])
    ours = to_theirs(jax.tree.map(np.asarray, {**gradients, "image_encoder": frozen}), published_places(model.config))
    want = {name.removeprefix("grad."): value for name, value in expected.items() if name.startswith("grad.")}
    assert set(want) == {name for name in ours if not name.startswith("visual_encoder.")}
    whole = np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in want.values()))
    for name, value in want.items():
        assert np.linalg.norm(ours[name] - value) < GRADIENT * max(np.linalg.norm(value), ROUNDING * whole), name


def test_matching(model: Model, expected: dict[str, np.ndarray]) -> None:
    """The published form equals the published value; the correct one is cross-entropy, which has another gradient."""
    found = {}
    for form in ("published", "cross_entropy"):
        task, plan = task_of(model, MATCHING, {"matching": {"loss": form}})
        found[form] = loss(task, plan, model, expected)
    assert float(found["published"][0]["loss"]) == pytest.approx(float(expected["loss_match"]), abs=SCORE)
    label, said = expected["match_label"] == 1, expected["match_pred"]
    accuracy = {"match_accuracy": said[label, 1] > 0.5, "no_match_accuracy": said[~label, 1] <= 0.5}
    for name, hits in accuracy.items():
        assert float(found["published"][0][name]) == pytest.approx(np.mean(hits) if len(hits) else 0)
    logits = reference_logits(model, expected)
    np.testing.assert_allclose(match_probability(logits), said[:, 1], atol=SCORE)
    log_probability = np.asarray(jax.nn.log_softmax(logits))
    chosen = np.where(label[:, None], log_probability[..., 1], log_probability[..., 0])
    assert float(found["cross_entropy"][0]["loss"]) == pytest.approx(-chosen.mean(), abs=SCORE)
    head = [gradients["text_image_match_head"]["kernel"] for _, gradients in found.values()]
    assert np.linalg.norm(head[0]) < 0.5 * np.linalg.norm(head[1])


def reference_logits(model: Model, expected: dict[str, np.ndarray]) -> jax.Array:
    """Match logits of the reference's pairs by the plain model."""

    def logits(images: jax.Array, input_ids: jax.Array, mask: jax.Array) -> jax.Array:
        apply: Any = lambda stage, *rows: model.module.apply({"params": model.params}, *rows, method=stage)  # noqa: E731
        return apply("match", apply("encode_text", input_ids, mask).tokens, mask, apply("encode_image", images).tokens)

    images = jnp.asarray(expected["image"].transpose(0, 2, 3, 1))
    input_ids = jnp.asarray(expected["input_ids"], jnp.int32)
    return jax.jit(logits)(images, input_ids, jnp.asarray(expected["attention_mask"]) > 0)
