"""Runs of one test process share what one of them has traced and compiled, wherever equal things would be compiled.

A train step is a pure function of its task, its optimizer, its mesh and its batch. A run builds the first two anew from
its configuration; here equal values give the object that was built first, by which what is compiled is then found.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from r2d2_jax.tasks.task import Task
from r2d2_jax.train import loop, setup

COMPILED = ("compile_train_step", "compile_term_gradients", "compile_all_finite")
PROGRAMS = 32  # that are kept; each is a few MB


def value_of(task: Task) -> Hashable:
    """What two tasks that compute the same have in common: their class and all that they are made of."""
    return type(task), tuple(getattr(task, field.name) for field in dataclasses.fields(task))


@contextmanager
def shared_programs() -> Iterator[None]:
    """Within it `train` compiles nothing that it has compiled before in this process."""
    tasks: dict[Hashable, Task] = {}
    build = setup.build_task

    def build_task(*arguments: Any, **settings: Any) -> Task:
        task = build(*arguments, **settings)
        return tasks.setdefault(value_of(task), task)

    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.lru_cache(maxsize=PROGRAMS)(function)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build_task", build_task)
        patch.setattr(setup, "make_optimizer", kept(setup.make_optimizer))
        for name in COMPILED:
            patch.setattr(loop, name, kept(getattr(loop, name)))
        yield
