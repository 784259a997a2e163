"""A batch in parts has the loss and the gradients of the whole, and never exists at once within the model."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import (
    BATCH_SIZE,
    MATCHING,
    QUEUE_LENGTH,
    RETRIEVAL,
    TEXT_LENGTH,
    VARIANTS,
    named_leaves,
    random_state,
    small_batch,
    small_config,
    small_labels,
    small_plan,
)

from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import trainable_of

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "full": ({}, 8),
    "without_et, image tower trained": (VARIANTS["without_et"] | VARIANTS["trainable_image"], 4),
    "prd2": (VARIANTS["prd2"], 4),
    "retrieval": (RETRIEVAL, 2),
    "matching": (MATCHING, 2),
}


def plan_of(changes: dict[str, Any], micro_batches: int) -> StepPlan:
    return small_plan(small_config(changes, {"train": {"micro_batches": micro_batches}}))


def differentiated(plan: StepPlan) -> Any:
    """`(trainable, state, batch) -> (terms and metrics, gradients)`."""

    def total(trainable: Any, state: Any, batch: Any) -> Any:
        params, key = {**state.params, **trainable}, jax.random.key(0)
        result = plan.task.loss(params, state.memory, batch, state.step, key, plan.mesh)
        return result.total(), (result.terms, result.metrics)

    return jax.jit(jax.grad(total, has_aux=True))


def lowered_text(changes: dict[str, Any], micro_batches: int) -> str:
    """The program of `differentiated`."""
    plan = plan_of(changes, micro_batches)
    state = random_state(plan)
    return differentiated(plan).lower(trainable_of(state.params, plan.task), state, small_batch(0)).as_text()


@pytest.mark.parametrize("changes, count", CASES.values(), ids=CASES)
def test_terms_metrics_and_gradients_are_those_of_the_whole_batch(changes: dict[str, Any], count: int) -> None:
    batch = small_batch(0).replace(label=jnp.asarray(small_labels(0)))

    def found(micro_batches: int) -> tuple[Any, Any]:
        plan = plan_of(changes, micro_batches)
        state = jax.tree.map(jnp.asarray, random_state(plan))
        gradients, scalars = differentiated(plan)(trainable_of(state.params, plan.task), state, batch)
        return named_leaves(gradients), scalars

    expected, scalars = found(1)
    whole = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in expected.values())))
    gradients, others = found(count)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), others, scalars)
    for name, leaf in expected.items():
        if name.endswith("key/bias"):  # a softmax does not see it: nothing but rounding
            assert max(np.linalg.norm(leaf), np.linalg.norm(gradients[name])) < 1e-7 * whole, name
        else:  # a small gradient is what is left when large numbers cancel
            allowed = 1e-5 * max(float(np.linalg.norm(leaf)), 1e-4 * whole)
            assert np.linalg.norm(gradients[name] - leaf) <= allowed, name


def test_nothing_within_the_model_exists_for_more_than_a_part_of_the_batch() -> None:
    """Neither hidden rows of an MLP nor logits over the vocabulary, both of which alone have 32 columns here.

    The passes of ranking have the most tokens: three for each pair.
    """

    def most_rows(micro_batches: int) -> int:
        shapes = re.findall(r"tensor<((?:\d+x)+)32xf32>", lowered_text({}, micro_batches))
        return max(math.prod(map(int, shape.split("x")[:-1])) for shape in shapes)

    assert most_rows(1) == 3 * BATCH_SIZE * TEXT_LENGTH
    assert most_rows(4) == 3 * BATCH_SIZE * TEXT_LENGTH // 4


@pytest.mark.parametrize("changes", [{}, VARIANTS["prd2"], RETRIEVAL], ids=["tgd", "prd2", "retrieval"])
def test_no_similarities_of_the_whole_batch_exist(changes: dict[str, Any]) -> None:
    """Neither with the rows of the batch, 8, nor with those and a queue of 20; nor are those of all parts kept."""

    def of_whole_batch(micro_batches: int) -> list[str]:
        rows = f"(?:{BATCH_SIZE}|{micro_batches}x{BATCH_SIZE // micro_batches})"
        columns = f"(?:{BATCH_SIZE}|{QUEUE_LENGTH}|{BATCH_SIZE + QUEUE_LENGTH})"
        return re.findall(rf"tensor<{rows}x{columns}xf32>", lowered_text(changes, micro_batches))

    assert of_whole_batch(1)
    assert not of_whole_batch(4)


def test_target_guided_distillation_in_parts_keeps_gradients_alone() -> None:
    """The backward pass has no products with the keys, so there are as many as in the pass of the whole batch."""

    def products(micro_batches: int) -> int:
        result = rf"tensor<{BATCH_SIZE // micro_batches}x(?:{QUEUE_LENGTH}|{BATCH_SIZE})xf32>"
        return len(re.findall(rf"stablehlo.dot_general .*-> {result}", lowered_text({}, micro_batches)))

    assert products(4) == products(1) > 0
