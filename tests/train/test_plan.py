"""A step is planned and compiled where there is neither data nor vocabulary."""

import jax
import pytest
from small_model import CHEAPEST, DROPPED, RETRIEVAL, VARIANTS, small_config

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.tasks.task import BERT_TOKENS
from r2d2_jax.train.plan import (
    SMALL_TOKENS,
    forward_cost,
    multiply_adds,
    planned_tokens,
    step_memory,
    step_plan,
    traced_forward_cost,
)
from r2d2_jax.train.state import abstract_state

ALONE = MeshConfig(1, 1)


@pytest.mark.parametrize("changes", [CHEAPEST, RETRIEVAL])
def test_a_step_is_planned_from_the_configuration_alone(changes: dict) -> None:
    """The data folder that the configuration names does not exist; the state, donated, is part of the arguments."""
    plan = step_plan(small_config(changes, {"data": {"directory": "nowhere"}}), jax.devices()[:1], ALONE)
    memory = step_memory(plan.compiled())
    leaves = jax.tree.leaves(abstract_state(plan.task, plan.optimizer, plan.mesh))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert state <= memory.donated <= memory.arguments
    assert memory.temporaries > 0


def test_a_batch_that_the_devices_do_not_divide() -> None:
    devices = jax.devices()[:1] * 3
    with pytest.raises(UserError, match="train.batch_size 8 is not a multiple of the mesh's 3 devices"):
        step_plan(small_config(CHEAPEST), devices, MeshConfig(3, 1))


def test_counts_two_matrix_products() -> None:
    """[3 5] x [5 7] x [7 2]: 3 * 5 * 7 + 3 * 7 * 2 multiply-adds."""
    matrices = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((3, 5), (5, 7), (7, 2))]
    assert multiply_adds(lambda a, b, c: a @ b @ c, *matrices) == 3 * 5 * 7 + 3 * 7 * 2


def test_without_enhanced_training_a_pair_costs_more() -> None:
    """The extra passes over the masked text: far more than rounding, far less than everything twice."""
    with_et, without_et = (forward_cost(small_config(VARIANTS[name]), 8) for name in ("full", "without_et"))
    assert 1.02 * with_et < without_et < 2 * with_et


def test_the_traced_forward_costs_what_the_compiled_one_does_and_has_no_dropout() -> None:
    """In a model wide enough for its products to count for nearly everything, as those of the published ones do."""
    wide = {"width": 128, "mlp_width": 512}
    plain = small_config(CHEAPEST, {"model": {"image": wide, "text": wide, "cross": {"width": 128}}})
    dropped = small_config(CHEAPEST, DROPPED, {"model": {"image": wide, "text": wide, "cross": {"width": 128}}})
    assert traced_forward_cost(dropped, 8) == traced_forward_cost(plain, 8)
    assert traced_forward_cost(dropped, 8) == pytest.approx(forward_cost(plain, 8), rel=0.03)


def test_the_special_tokens_of_a_plan_lie_inside_the_vocabulary() -> None:
    assert (planned_tokens(21128), planned_tokens(103), planned_tokens(40)) == (BERT_TOKENS, SMALL_TOKENS, SMALL_TOKENS)
