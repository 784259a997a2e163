"""A step is planned and compiled where there is neither data nor vocabulary."""

import jax
import pytest
from small_model import CHEAPEST, RETRIEVAL, small_config

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.train.plan import collectives, step_memory, step_plan, tpu_chips
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


def test_collectives_are_found_with_their_shapes() -> None:
    program = """
  %a = f32[56,48]{1,0} all-gather(f32[7,48]{1,0} %x), dimensions={0}
  %b = (f32[3]{0}, s32[]) all-reduce-start(f32[3]{0} %y, s32[] %z), to_apply=%add
  %c = f32[56,48]{1,0} add(f32[56,48]{1,0} %a, f32[56,48]{1,0} %a)
"""
    found = list(collectives(program))
    assert found == [("all-gather", (56, 48)), ("all-reduce", (3,)), ("all-reduce", ())]


def test_a_topology_that_nobody_knows() -> None:
    with pytest.raises(UserError, match=r"cannot compile for --topology=v0:1x1: .*; pip install libtpu, name one like"):
        tpu_chips("v0:1x1")
