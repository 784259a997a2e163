"""One step of a variant, compiled once for all tests of a file: from what it starts, and what it makes of that."""

from typing import Any

import jax
import jax.numpy as jnp
from small_model import VARIANTS, compiled_step, random_state, small_batch, small_config, small_plan

from r2d2_jax.train.state import TrainState

KEY = jax.random.key(5)


class Case:
    """A variant's plan, its compiled step, a state in the middle of a run, and what one step makes of it."""

    def __init__(self, variant: str, *changes: dict[str, Any]) -> None:
        config = small_config(VARIANTS[variant], *changes)
        self.plan = small_plan(config)
        self.run = compiled_step(self.plan)
        self.before = random_state(self.plan)
        self.batch = small_batch(0)
        if self.plan.task.reads_text_ids:
            self.batch = self.batch.replace(text_id=jnp.zeros((len(self.batch.image_id), 2), jnp.uint32))
        self.after, self.metrics = self.run(self.before, self.batch, KEY)


CASES: dict[str, Case] = {}


def with_memory(state: TrainState, **changes: Any) -> TrainState:
    return state.replace(memory=state.memory.replace(**changes))


def case(variant: str) -> Case:
    """Each variant is compiled once for all tests of a file, which lets them go at its end."""
    if variant not in CASES:
        CASES[variant] = Case(variant)
    return CASES[variant]
