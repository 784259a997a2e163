"""Which passes of a step have dropout, and that no two of them share a key."""

import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import (
    DROPPED,
    RETRIEVAL,
    VARIANTS,
    random_state,
    small_batch,
    small_config,
    small_plan,
)

from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.tasks import stages
from r2d2_jax.tasks.stages import student_forward
from r2d2_jax.train.plan import StepPlan


class Noted:
    """Notes the stage of each pass of student and teacher, and of those that have a key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[str] = []
        self.teacher: list[str] = []
        self.with_key: list[str] = []
        pretraining = sys.modules["r2d2_jax.tasks.pretraining"]  # the package has a function of this name
        monkeypatch.setattr(stages, "apply_by_rows", self._noting(stages.apply_by_rows))
        monkeypatch.setattr(pretraining, "forward_in_parts", self._teachers(pretraining.forward_in_parts))

    @property
    def student(self) -> list[str]:
        return list((Counter(self.passes) - Counter(self.teacher)).elements())

    def _noting(self, original: Any) -> Any:
        def apply(model: R2D2, params: Any, mesh: Any, stage: str, *inputs: Any, **more: Any) -> Any:
            self.passes.append(stage)
            if more.get("dropout") is not None:
                self.with_key.append(stage)
            return original(model, params, mesh, stage, *inputs, **more)

        return apply

    def _teachers(self, original: Any) -> Any:
        def made(*arguments: Any) -> Any:
            forward = original(*arguments)

            def noting(stage: str, *inputs: Any) -> Any:
                self.teacher.append(stage)
                return forward(stage, *inputs)

            return noting

        return made


def trace_loss(plan: StepPlan) -> None:
    state = random_state(plan)
    arguments = (state.params, state.memory, small_batch(0), state.step, jax.random.key(0))
    jax.eval_shape(lambda *arguments: plan.task.loss(*arguments, plan.mesh), *arguments)


@pytest.mark.parametrize("changes", [{}, VARIANTS["without_et"], VARIANTS["trainable_image"], RETRIEVAL])
def test_every_pass_of_the_student_has_a_key_and_none_of_the_teacher(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Noted(monkeypatch)
    trace_loss(small_plan(small_config(changes, DROPPED)))
    assert "encode_text" in noted.student
    assert sorted(noted.with_key) == sorted(noted.student)
    assert bool(noted.teacher) is (changes is not RETRIEVAL)
    noted.with_key.clear()
    trace_loss(small_plan(small_config(changes)))
    assert noted.with_key == []


def test_no_two_passes_steps_or_runs_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "apply_by_rows", lambda *_, dropout: jax.random.key_data(dropout).tolist())
    plan = small_plan(small_config(DROPPED))
    passes = ("encode_text", "encode_text", "cross_text_image", "cross_image_text", "cross_text_image")

    def keys(seed: int, step: int) -> list[Any]:
        forward = student_forward(plan.task, {}, plan.mesh, jax.random.key(seed), np.int32(step))
        return [forward(stage) for stage in passes]

    drawn = [key for seed in (0, 1) for step in (0, 1) for key in keys(seed, step)]
    assert len({tuple(key) for key in drawn}) == len(drawn) == 20
    assert keys(0, 1) == keys(0, 1)


@pytest.mark.parametrize("part, same_text", [("text", False), ("cross", True)])
def test_either_rate_alone_reaches_its_own_part(part: str, same_text: bool) -> None:
    """Both with masks under jit: another step gives another text, or the same text and another reading of it."""
    plan = small_plan(small_config({"model": {part: {"dropout": 0.5}}}))
    params, batch, images = random_state(plan).params, small_batch(0), jnp.ones((8, 5, 16))

    @jax.jit
    def tokens(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        forward = student_forward(plan.task, params, plan.mesh, jax.random.key(0), step)
        text = forward("encode_text", batch.input_ids, batch.attention_mask).tokens
        return text, forward("cross_text_image", text, batch.attention_mask, images)

    (text, read), (other_text, other_read), again = (jax.device_get(tokens(step)) for step in (0, 1, 0))
    assert np.array_equal(text, other_text) is same_text
    assert not np.array_equal(read, other_read)
    np.testing.assert_array_equal(again[1], read)


def test_each_micro_batch_draws_masks_of_its_own() -> None:
    plan = small_plan(small_config(DROPPED, {"train": {"micro_batches": 4}}))
    params, batch = random_state(plan).params, small_batch(0)
    ids, mask = (jnp.broadcast_to(rows[-1:], rows.shape) for rows in (batch.input_ids, batch.attention_mask))
    forward = student_forward(plan.task, params, plan.mesh, jax.random.key(0), jnp.int32(0))
    embeds = np.asarray(forward("encode_text", ids, mask).embed)
    assert len(np.unique(embeds.round(5), axis=0)) == len(embeds) == 8
