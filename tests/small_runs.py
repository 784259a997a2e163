"""Whole runs on the tiny prepared dataset, what they keep, and how tests come between their batches."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_model import small_config

from r2d2_jax.train import loop
from r2d2_jax.train.loop import RunOutcome, train

ROOT = Path(__file__).resolve().parents[1]
STEPS = 16  # 4 epochs of 32 records in batches of 8
# Logs at 4, 8, 12, 16; evaluates at 6, 12, 16; saves at 5, 6, 10, 12, 15, 16.
RUN: dict[str, Any] = {
    "data": {"foil_split": "swapped"},
    "train": {"epochs": 4.0, "log_every": 4, "evaluate_every": 6, "checkpoint_every": 5},
}
NO_EVALUATION: dict[str, Any] = {"data": {"validation_split": ""}}


def run(prepared: Path, workdir: Path, *changes: Mapping[str, Any]) -> RunOutcome:
    return train(small_config(*changes, {"data": {"directory": str(prepared)}}), workdir)


class Left(BaseException):
    """Stands for the end of the process."""


def before_batch(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Calls `act` with 1, 2, ... before each batch that the loop asks for."""
    original, calls = loop.next_batch, iter(range(1, 10**6))

    def next_batch(batches: Iterator[Any], progress: Any) -> Any:
        act(next(calls))
        return original(batches, progress)

    monkeypatch.setattr(loop, "next_batch", next_batch)


def killed_before_batch(number: int, values: dict[str, Any], workdir: Path) -> None:
    """Starts a run of a configuration in a process of its own, which SIGKILL ends before that batch."""
    program = """
import json, os, signal, sys
import light_process
from ml_collections import ConfigDict
from r2d2_jax.config.reading import Config
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.train import loop
original, calls = loop.next_batch, iter(range(1, 1000))
def next_batch(batches, progress):
    if next(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(batches, progress)
loop.next_batch = next_batch
loop.train(Config.from_config_dict(ConfigDict(json.loads(sys.argv[1]))), path_or_bucket(sys.argv[2]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(values), str(workdir), str(number)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
