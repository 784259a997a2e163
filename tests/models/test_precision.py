"""Float32 products are exact: read in the lowered programs, because a CPU multiplies exactly whatever they ask for."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from small_model import BATCH_SIZE, DROPPED, TEXT_LENGTH, VARIANTS, small_config, small_plan

from r2d2_jax.forwards import compiled_forwards
from r2d2_jax.models.r2d2 import abstract_params
from r2d2_jax.train.compiled import abstract_batch, lower_train_step
from r2d2_jax.train.state import abstract_state

PRODUCT = re.compile(r"stablehlo\.dot_general .*? : \(tensor<(?:\d+x)*([a-z]\w*)>, tensor<(?:\d+x)*([a-z]\w*)>\)")
CASES = {
    "image tower trained, without ET": (VARIANTS["trainable_image"], VARIANTS["without_et"]),
    "with dropout": (DROPPED,),
}


def products(lowered: jax.stages.Lowered) -> Counter[tuple[str, bool]]:
    """How many products there are of each (dtype, whether exact ones are asked for)."""
    found: Counter[tuple[str, bool]] = Counter()
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]
    for line in lines:
        match = PRODUCT.search(line)
        assert match, line
        assert match[1] == match[2], line
        found[match[1], "precision = [HIGHEST, HIGHEST]" in line] += 1
    assert found.total() == len(lines) > 0
    return found


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_every_float32_product_of_a_step_is_exact(changes: tuple[Any, ...]) -> None:
    plan = small_plan(small_config(*changes))
    lowered = lower_train_step(plan.task, plan.optimizer, plan.mesh, plan.batch_size)
    assert set(products(lowered)) == {("f32", True)}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_similarities_and_match_heads_are_exact_in_a_bfloat16_model(changes: tuple[Any, ...]) -> None:
    plan = small_plan(small_config(*changes, {"model": {"dtype": "bfloat16"}}))
    state = abstract_state(plan.task, plan.optimizer, plan.mesh)
    loss = lambda state, batch, key: plan.task.loss(  # noqa: E731
        state.params, state.memory, batch, state.step, key, plan.mesh
    ).total()
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = products(jax.jit(loss).lower(state, abstract_batch(plan.task, plan.batch_size, plan.mesh), key))
    # Similarities both ways for accuracies and draws; those of TgD and of its targets with batch and queue; two heads.
    assert found["f32", True] == 2 + 2 * 2 * 2 + 2
    assert set(found) == {("f32", True), ("bf16", False)}


def test_every_float32_product_of_the_forwards_is_exact() -> None:
    plan = small_plan(small_config())
    model, forwards = plan.task.model, compiled_forwards(plan.task.model, plan.mesh)
    params = abstract_params(model)
    tower, text = model.config.image, model.config.text
    images = jax.ShapeDtypeStruct((BATCH_SIZE, tower.image_size, tower.image_size, 3), jnp.uint8)
    ids = jax.ShapeDtypeStruct((BATCH_SIZE, TEXT_LENGTH), jnp.int32)
    mask = jax.ShapeDtypeStruct(ids.shape, bool)
    tokens = jax.ShapeDtypeStruct((*ids.shape, text.width), jnp.float32)
    patches = jax.ShapeDtypeStruct((BATCH_SIZE, tower.patches + 1, tower.width), jnp.float32)
    for lowered in (
        forwards.encode_image.lower(params, images),
        forwards.encode_text.lower(params, ids, mask),
        forwards.match.lower(params, tokens, mask, patches),
        forwards.attention.lower(params, tokens, mask, patches),
        forwards.token_log_probabilities.lower(params, tokens, mask, patches, ids),
    ):
        assert set(products(lowered)) == {("f32", True)}
