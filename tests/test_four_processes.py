"""A run of four processes that is stopped by a signal to one, and goes on in two and in one, each with another mesh."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_worker import images_of
from small_model import CHEAPEST, config_values, log_lines, saved_state, small_config, write_small_dataset

from r2d2_jax.train import loop
from r2d2_jax.train.loop import train

TESTS = Path(__file__).resolve().parent
TIMEOUT = 900  # seconds; on two free cores less than a minute
EPOCH = 4  # steps: 32 records in batches of 8
# How many processes, their mesh, before which of their batches one is told to stop, and the step at which all do.
PARTS = ((4, {"data": 2, "fsdp": 2}, 3, 5), (2, {"data": 1, "fsdp": 2}, 3, 10))


def changes(data: Path, mesh: Mapping[str, int]) -> tuple[Mapping[str, Any], ...]:
    """A run of three epochs with a line of the log every two steps."""
    return (
        CHEAPEST,
        {"data": {"directory": str(data), "validation_split": ""}, "mesh": dict(mesh)},
        {"optimizer": {"epsilon": 1e-2}},  # as in distributed_worker.py
        {"train": {"epochs": 3.0, "log_every": 2}},
    )


def stopped(processes: int, told: int, values: dict[str, Any], workdir: Path) -> tuple[list[Any], list[list[int]]]:
    """Runs so many processes, of which the last alone is told to stop; their outcomes, and the images of each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--mode=train", f"--config={json.dumps(values)}", f"--stop_before={told}", f"--output={workdir}"]
    flags += ["--devices=1", f"--processes={processes}", f"--port={port}"]
    command = [sys.executable, str(TESTS / "recording_worker.py"), *flags]
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "JAXTYPING_DISABLE": "1"}
    files = [(workdir.parent / f"{processes}-{number}").open("w+") for number in range(processes)]
    running = [
        subprocess.Popen([*command, f"--process={number}"], env=environment, stdout=file, stderr=file)
        for number, file in enumerate(files)
    ]
    try:
        statuses = [process.wait(timeout=TIMEOUT) for process in running]
    finally:
        for process in running:
            process.kill()
    printed = []
    for file in files:
        with file:
            file.seek(0)
            printed.append(file.read())
    assert statuses == [0] * processes, "\n".join(said[-3000:] for said in printed)
    lines = [said.splitlines() for said in printed]
    each = [json.loads(of_one[-1]) for of_one in lines]
    together = [[image for batch in batches for image in batch] for batches in zip(*each, strict=True)]
    return [json.loads(of_one[-2]) for of_one in lines], together


def test_four_then_two_then_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and final state are those of one process that does everything; an epoch has every image once."""
    data = write_small_dataset(tmp_path / "data", train=32)
    workdir, alone = tmp_path / "run", tmp_path / "alone"
    seen: list[list[int]] = []
    for processes, mesh, told, step in PARTS:
        outcomes, images = stopped(processes, told, config_values(*changes(data, mesh)), workdir)
        assert outcomes == [{"step": step, "finished": False}] * processes
        seen += images[: step - len(seen)]
        assert len(seen) == step

    original, later = loop.next_batch, list[list[int]]()

    def next_batch(batches: Any, progress: Any) -> Any:
        rows = original(batches, progress)
        later.append(images_of(rows))
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(loop, "next_batch", next_batch)
        assert train(small_config(*changes(data, {})), workdir).finished
    seen += later
    assert train(small_config(*changes(data, {})), alone).finished

    assert len(seen) == 3 * EPOCH
    for start in range(0, len(seen), EPOCH):
        counts = Counter(image for step in seen[start : start + EPOCH] for image in step)
        assert (len(counts), set(counts.values())) == (32, {1})
    for line, expected in zip(log_lines(workdir), log_lines(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)
    states = saved_state(workdir), saved_state(alone)
    assert states[0].keys() == states[1].keys()
    for name, expected in states[1].items():
        if not name.endswith("key/bias"):  # these start at zero and grow by rounding errors alone
            difference = np.linalg.norm((np.float64(states[0][name]) - np.float64(expected)).ravel())
            assert difference <= 1e-5 * np.linalg.norm(np.float64(expected).ravel()), name
