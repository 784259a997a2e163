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


_tasks: dict[Hashable, Task] = {}
_build_task = setup.build_task
_kept: dict[str, Callable[..., Any]] = {
    name: functools.lru_cache(maxsize=PROGRAMS)(getattr(loop, name)) for name in COMPILED
}
_make_optimizer = functools.lru_cache(maxsize=PROGRAMS)(setup.make_optimizer)


def _shared_task(*arguments: Any, **settings: Any) -> Task:
    task = _build_task(*arguments, **settings)
    return _tasks.setdefault(value_of(task), task)


@contextmanager
def shared_programs() -> Iterator[None]:
    """Within it `train` compiles nothing that it has compiled before, within it, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build_task", _shared_task)
        patch.setattr(setup, "make_optimizer", _make_optimizer)
        for name, function in _kept.items():
            patch.setattr(loop, name, function)
        yield
