"""benchmarks/soak.py: what it measures of a process and its log, and where it fails."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import called, loaded_benchmark

MIB = 2**20


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("soak") as module:
        yield module


def soaked(
    soak: ModuleType,
    patch: pytest.MonkeyPatch,
    *flags: str,
    memory: Sequence[int] = (90, 100, 100, 101),
    speed: Sequence[float] = (10, 10, 10, 9.6),
    compiled: int = 1,
) -> subprocess.CompletedProcess[str]:
    """The program on a run of 40 steps with a line every 5 of them, and so many MiB and pairs/s in its quarters."""
    samples = [soak.Sample(step, speed[(step - 1) // 10], memory[(step - 1) // 10] * MIB) for step in range(5, 41, 5)]
    patch.setattr(soak, "trained", lambda folder, overrides: (samples, Counter({"step": compiled, "stage": 4})))
    return called(soak.main, "--steps=40", *flags)


def test_a_run_that_stays_as_it_begins(soak: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = soaked(soak, monkeypatch, f"--json={tmp_path / 'soak.json'}")
    assert ended.returncode == 0, ended.stderr
    assert "memory of the last quarter over the second: +1.0%; speed of the last over the first: 0.960" in ended.stdout
    assert "compiled: stage 4, step 1" in ended.stdout
    report = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert report["memory"] == [90 * MIB, 100 * MIB, 100 * MIB, 101 * MIB]
    assert report["compiled"] == {"step": 1, "stage": 4}


@pytest.mark.parametrize("worse", [{"memory": (90, 100, 101, 103)}, {"speed": (10, 10, 10, 9.4)}, {"compiled": 2}])
def test_a_run_that_does_not_fails(soak: ModuleType, monkeypatch: pytest.MonkeyPatch, worse: dict[str, Any]) -> None:
    assert soaked(soak, monkeypatch, **worse).returncode == 1


def test_a_quarter_without_a_line_is_refused(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "trained", lambda folder, overrides: ([soak.Sample(40, 1.0, 1)], Counter()))
    ended = called(soak.main, "--steps=40")
    assert ended.returncode == 2
    assert "raise --steps or log more often" in ended.stderr


def test_memory_is_that_of_children_too(soak: ModuleType) -> None:
    before = soak.memory_of(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "held = bytearray(256 << 20); print('held', flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert soak.memory_of(child.pid) > 256 * MIB
        assert soak.memory_of(os.getpid()) > before + 128 * MIB  # this process may have given some back
    finally:
        child.communicate(b"\n")
    assert soak.memory_of(child.pid) == 0


def test_lines_of_a_log_that_is_being_written(soak: ModuleType, tmp_path: Path) -> None:
    """Evaluations have no speed, a line that is not yet whole is read later, and the end of the run ends all."""
    log = tmp_path / "metrics.jsonl"
    lines = [{"step": 10, "pairs_per_second": 5.0}, {"step": 10, "validation/dual/mean": 1.0}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20, ', encoding="utf-8")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        samples = soak.sampled(process, log)
        first = next(samples)
        assert (first.step, first.speed) == (10, 5.0)
        assert first.memory > 0
        with log.open("a", encoding="utf-8") as file:
            file.write('"pairs_per_second": 4.0}\n')
        assert next(samples).speed == 4.0
        process.communicate(b"\n")
        assert not list(samples)


def test_a_run_that_fails_is_told(soak: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text("import sys\nsys.exit('no such data')\n", encoding="utf-8")
    monkeypatch.setattr(soak, "TRAIN", program)
    ended = called(soak.main)
    assert ended.returncode == 2
    assert "the run ended with status 1; it printed:\nno such data" in ended.stderr


def test_compilations_are_found_in_what_jax_says(soak: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    def step(x: jax.Array) -> jax.Array:
        return x * float(time.monotonic())  # no program of an earlier test

    with jax.log_compiles():
        jax.jit(step).lower(jnp.ones(3)).compile()
    assert soak.COMPILED.findall(caplog.text).count("step") == 1
