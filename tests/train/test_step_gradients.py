"""Where the gradients of a step go, what has no effect on them or the loss, and what a step draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import BATCH_SIZE, TOKENS, assert_bitwise_equal, named_leaves
from small_steps import KEY, Case, case, with_memory

from r2d2_jax.arrays import Batch
from r2d2_jax.tasks.pretraining import PretrainingMemory
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import TrainState

pytestmark = pytest.mark.usefixtures("forget_cases")


# --- gradients ------------------------------------------------------------------------------------------------------


class Gradients:
    """The loss, its metrics, and its gradients in everything that is a float."""

    def __init__(self, plan: StepPlan) -> None:
        def loss(params: Any, teacher: Any, entries: Any, mean: Any, state: TrainState, batch: Batch) -> Any:
            queue = state.memory.queue.replace(image_embed=entries[0], text_embed=entries[1])
            memory = PretrainingMemory(teacher, queue, mean)
            result = plan.task.loss(params, memory, batch, state.step, KEY, plan.mesh)
            return result.total(), {"loss": result.total(), **result.terms, **result.metrics}

        self._run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
        memory = state.memory
        entries = (memory.queue.image_embed, memory.queue.text_embed)
        (_, metrics), gradients = self._run(state.params, memory.teacher, entries, memory.feature_mean, state, batch)
        return metrics, named_leaves(dict(zip(("params", "teacher", "queue", "mean"), gradients, strict=True)))


@pytest.fixture(scope="module")
def gradients(full: Case) -> Gradients:
    return Gradients(full.plan)


def test_gradients_reach_the_student_and_nothing_else(full: Case, gradients: Gradients) -> None:
    metrics, found = gradients(full.before, full.batch)
    for name, gradient in found.items():
        assert np.isfinite(gradient).all(), name
        if not name.startswith("params/"):
            assert not gradient.any(), name
        elif not name.endswith("position_embedding/embedding"):
            assert gradient.any(), name
    squares = [
        (np.float64(gradient) ** 2).sum()
        for name, gradient in found.items()
        if name.startswith("params/") and name.split("/")[1] in full.plan.task.trainable_parts
    ]
    assert float(full.metrics["gradient_norm"]) == pytest.approx(sum(squares) ** 0.5, rel=1e-4)
    assert float(full.metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)


def test_unfilled_queue_slots_have_no_effect(full: Case, gradients: Gradients) -> None:
    queue, empty = full.before.memory.queue, ~np.array(full.before.memory.queue.valid)
    spoiled = queue.replace(
        image_embed=np.where(empty[:, None], np.float32(1e4), queue.image_embed),
        text_embed=np.where(empty[:, None], np.float32(-1e4), queue.text_embed),
        image_id=np.where(empty[:, None], np.array(full.batch.image_id)[:1], queue.image_id),
        age=np.where(empty, np.int32(10**6), queue.age),
    )
    expected, clean = gradients(full.before, full.batch)
    metrics, found = gradients(with_memory(full.before, queue=spoiled), full.batch)
    assert_bitwise_equal(named_leaves(metrics), named_leaves(expected))
    assert_bitwise_equal(found, clean)


def test_padding_has_no_effect(full: Case, gradients: Gradients) -> None:
    batch, padding = full.batch, ~np.array(full.batch.attention_mask)
    noise = np.random.default_rng(1).integers(0, 32, padding.shape)
    spoiled = batch.replace(input_ids=jnp.asarray(np.where(padding, noise, batch.input_ids).astype(np.int32)))
    expected, clean = gradients(full.before, batch)
    metrics, found = gradients(full.before, spoiled)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
    for name, value in found.items():
        np.testing.assert_allclose(value, clean[name], atol=1e-6 * np.abs(clean[name]).max(), rtol=0, err_msg=name)


def test_order_of_the_batch_does_not_matter(full: Case, gradients: Gradients) -> None:
    """Texts with a single word that can be masked leave nothing to chance but the hard negatives."""
    rng = np.random.default_rng(3)
    ids = rng.choice([TOKENS.cls_id, TOKENS.sep_id], (BATCH_SIZE, 10))
    ids[:, 0], ids[np.arange(BATCH_SIZE), rng.integers(1, 9, BATCH_SIZE)] = TOKENS.cls_id, 5 + np.arange(BATCH_SIZE)
    batch = full.batch.replace(input_ids=jnp.asarray(ids.astype(np.int32)), attention_mask=jnp.ones(ids.shape, bool))
    expected, _ = gradients(full.before, batch)
    shuffled, _ = gradients(full.before, jax.tree.map(lambda leaf: leaf[np.array([3, 0, 7, 1, 6, 2, 5, 4])], batch))
    for name in ("tgd", "fgd", "i2t_accuracy", "t2i_accuracy"):
        np.testing.assert_allclose(shuffled[name], expected[name], rtol=1e-5, err_msg=name)


def test_order_of_the_batch_does_not_matter_to_gcpr() -> None:
    this = case("without_tgd")
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    ids = np.full((BATCH_SIZE, 10), TOKENS.sep_id, np.int32)
    ids[:, 0], ids[np.arange(BATCH_SIZE), 1 + np.arange(BATCH_SIZE)] = TOKENS.cls_id, 6
    batch = this.batch.replace(input_ids=jnp.asarray(ids), attention_mask=jnp.ones(ids.shape, bool))
    losses = [
        float(this.run(this.before, rows, KEY)[1]["gcpr"])
        for rows in (batch, jax.tree.map(lambda leaf: leaf[order], batch))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- draws ----------------------------------------------------------------------------------------------------------


def test_the_same_key_and_step_give_the_same_result(full: Case) -> None:
    after, metrics = full.run(full.before, full.batch, KEY)
    assert_bitwise_equal(named_leaves(after), named_leaves(full.after))
    assert_bitwise_equal(named_leaves(metrics), named_leaves(full.metrics))


def test_another_key_or_step_draws_otherwise(full: Case) -> None:
    # Step 4 and 5 have the same share of soft targets: the ramp is over.
    results = [
        full.run(full.before.replace(step=np.int32(step)), full.batch, jax.random.key(seed))[1]
        for step, seed in ((4, 5), (5, 5), (4, 6))
    ]
    for name in ("mlm", "fgr"):
        assert len({float(metrics[name]) for metrics in results}) == 3, name
