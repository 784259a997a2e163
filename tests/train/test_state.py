"""What each variant has in its state, how it starts, and that shapes are known without computing."""

import jax
import numpy as np
import pytest
from small_model import QUEUE_LENGTH, VARIANTS, assert_bitwise_equal, named_leaves, small_config, small_plan

from r2d2_jax.tasks import build_task
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import TrainState, abstract_state, init_state, sharded_init_state

TOWERS = {"image_encoder", "text_encoder", "image_projection", "text_projection", "temperature"}
TEXT_IMAGE, MASKED_LM = {"text_image_encoder"}, {"masked_lm_head"}
MATCHING = {
    *TEXT_IMAGE,
    "image_text_encoder",
    "image_text_projection",
    "text_image_match_head",
    "image_text_match_head",
}
TEXT_TEACHER = {"text_encoder", "text_projection"}
# variant -> parameter groups, teacher groups, has a queue, has a feature mean
EXPECTED = {
    "full": (TOWERS | MATCHING | MASKED_LM, TEXT_TEACHER | {"image_projection"}, True, True),
    "without_et": (TOWERS | MATCHING | MASKED_LM, TEXT_TEACHER | {"image_projection"}, True, True),
    "without_tgd": (TOWERS | MATCHING | MASKED_LM, TEXT_TEACHER, False, True),
    "without_fgd": (TOWERS | MATCHING | MASKED_LM, TEXT_TEACHER | {"image_projection"}, True, False),
    "without_twd": (TOWERS | MATCHING | MASKED_LM, set(), False, False),
    "without_fgr": (TOWERS | TEXT_IMAGE | MASKED_LM, TEXT_TEACHER | {"image_projection"}, True, True),
    "prd2": (TOWERS, TEXT_TEACHER | {"image_projection"}, True, True),
    "trainable_image": (
        TOWERS | MATCHING | MASKED_LM,
        TEXT_TEACHER | {"image_projection", "image_encoder"},
        True,
        True,
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_of_a_variant(variant: str) -> None:
    parts, teacher, queue, mean = EXPECTED[variant]
    plan = small_plan(small_config(VARIANTS[variant]))
    task, state = plan.task, abstract_state(plan.task, plan.optimizer, plan.mesh)
    memory = state.memory
    assert set(state.params) == parts
    frozen = set() if variant == "trainable_image" else {"image_encoder"}
    assert set(task.trainable_parts) == parts - frozen
    assert set(memory.teacher or {}) == set(task.teacher_parts) == teacher
    assert (memory.queue is not None, memory.feature_mean is not None) == (queue, mean)
    moments = {name.split("/mu/")[1] for name in named_shapes(state.opt_state) if "/mu/" in name}
    assert moments == {name for name in named_shapes(state.params) if name.split("/")[0] not in frozen}


def named_shapes(tree: object) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, leaf.dtype) for path, leaf in leaves}


@pytest.fixture(scope="module")
def plan() -> StepPlan:
    return small_plan(small_config(VARIANTS["prd2"]))


def test_a_fresh_state(plan: StepPlan) -> None:
    built = (plan.task, plan.optimizer, plan.mesh)
    state = sharded_init_state(*built, jax.random.key(0))
    memory = state.memory
    assert named_shapes(state) == named_shapes(abstract_state(*built))
    assert (int(state.step), int(memory.queue.head), memory.queue.valid.any()) == (0, 0, False)
    assert memory.queue.image_embed.shape == (QUEUE_LENGTH, 16)
    student = {part: state.params[part] for part in memory.teacher}
    assert_bitwise_equal(named_leaves(memory.teacher), named_leaves(student))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers), "a donated array is there twice"


def started(plan: StepPlan, seed: int) -> TrainState:
    return jax.jit(init_state, static_argnums=(0, 1))(plan.task, plan.optimizer, jax.random.key(seed))


def test_the_seed_decides(plan: StepPlan) -> None:
    first, again, other = (named_leaves(started(plan, seed).params) for seed in (0, 0, 1))
    assert_bitwise_equal(first, again)
    kernels = [name for name in first if name.endswith(("kernel", "embedding"))]
    assert all((first[name] != other[name]).any() for name in kernels)


def test_ramp_of_the_soft_targets() -> None:
    config = small_config({"loss": {"soft_target_ramp_epochs": 1.5}})
    ramped = build_task(config, epoch_steps=7)
    shares = [float(ramped.soft_target_share(step)) for step in (0, 5, 10, 20)]  # 1.5 epochs are 10 steps
    assert shares == pytest.approx([0, 0.2, 0.4, 0.4])


def test_initial_temperature_and_norms(plan: StepPlan) -> None:
    params = named_leaves(started(plan, 0).params)
    assert params["temperature"] == np.float32(0.07)
    assert all((params[name] == 1).all() for name in params if name.endswith("scale"))
