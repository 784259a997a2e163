"""benchmarks/random_inputs.py: nothing but results and messages comes out, and what else comes out is found."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from absl import flags
from programs import ROOT, loaded_benchmark

from r2d2_jax.errors import UserError

KINDS = ("annotations", "images", "queries", "vocabularies")
CASES = 40


@pytest.fixture(scope="module")
def random_inputs() -> Iterator[ModuleType]:
    with loaded_benchmark("random_inputs") as module:
        flags.FLAGS.cases = CASES
        yield module


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_results_and_messages(
    kind: str, random_inputs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(random_inputs.ATTEMPTS) == set(KINDS)
    failed = random_inputs.run_kind(kind, random_inputs.ATTEMPTS[kind](tmp_path), tmp_path)
    printed = capsys.readouterr()
    assert failed == 0, printed.out + printed.err
    counts = [int(part.split()[0]) for part in printed.out.split(";")[0].split(": ")[1].split(", ")]
    assert sum(counts) == CASES
    assert len(counts) > 1  # some were taken and some refused


@pytest.mark.parametrize("error", [KeyError("a bug"), AssertionError("a wrong result"), UserError(" ")])
def test_what_should_not_come_out_is_found(
    error: Exception, random_inputs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def attempt(rng: Any, folder: Path) -> str:
        if rng.random() < 0.5:
            raise error
        return "read"

    failed = random_inputs.run_kind("images", attempt, tmp_path)
    printed = capsys.readouterr()
    assert 0 < failed < CASES
    assert type(error).__name__ in printed.err
    again = next(line for line in printed.out.splitlines() if line.startswith("images ")).split("--first=")[1]
    drawn = np.random.default_rng([0, int(again.split()[0])]).random()
    assert drawn < 0.5  # that is the case which failed


def test_memory_that_grows_is_found(
    random_inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = iter((100.0, 700.0))
    monkeypatch.setattr(random_inputs, "peak_mebibytes", lambda: next(peaks))
    assert random_inputs.run_kind("images", lambda rng, folder: "read", tmp_path) == 1
    assert "memory grew by more than --mebibytes=500" in capsys.readouterr().out


def test_a_case_that_hangs_ends_with_a_traceback() -> None:
    program = """
import sys, time
sys.path.insert(0, "benchmarks")
import random_inputs
random_inputs.flags.FLAGS(["", "--seconds=1"])
def hang(rng, folder):
    time.sleep(60)
random_inputs.run_kind("images", hang, None)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Timeout (0:00:01)!" in done.stderr
    assert "in hang" in done.stderr
