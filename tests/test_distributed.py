"""One device, eight devices and two processes compute the same loss, gradients and steps; two processes make a run."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from small_model import CHEAPEST, NO_CROSS, config_values, log_lines, saved_state, small_config, write_small_dataset

from r2d2_jax.lock import held
from r2d2_jax.train.loop import train

TESTS = Path(__file__).resolve().parent
TIMEOUT = 900  # seconds; on two free cores everything here takes a minute or two
DERIVED = ("gradients", "mu", "nu")
ALONE = "1_processes_1x1"
# What is compared with one device: the task, the number of processes, and the mesh.
TOGETHER = (
    ("pretraining", 1, "8x1"),
    ("pretraining", 1, "2x4"),
    ("pretraining", 2, "8x1"),
    ("pretraining", 2, "1x8"),
    ("retrieval", 1, "8x1"),
    ("retrieval", 1, "2x4"),
    ("retrieval", 2, "2x4"),
    ("matching", 1, "8x1"),
    ("matching", 1, "2x4"),
    ("in_parts", 1, "8x1"),
    ("in_parts", 2, "2x4"),
)
# What is computed alone to compare with, where it is not the same.
REFERENCE = {"in_parts": "plain"}  # two micro batches with one batch


@dataclass
class Running:
    """A worker; what it prints goes to files, since workers that wait for each other must never wait for a reader."""

    process: subprocess.Popen
    output: IO[str]
    errors: IO[str]


def start(*arguments: str) -> Running:
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "JAXTYPING_DISABLE": "1"}
    command = [sys.executable, str(TESTS / "distributed_worker.py"), *arguments]
    output, errors = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
    return Running(subprocess.Popen(command, env=environment, stdout=output, stderr=errors), output, errors)


def together(processes: int, *arguments: str) -> list[Running]:
    """Starts the worker in so many processes that know each other; PROCESS in an argument is the number of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (f"--processes={processes}", f"--port={port}")
    own = [[argument.replace("PROCESS", str(number)) for argument in arguments] for number in range(processes)]
    return [start(*own[number], *flags, f"--process={number}") for number in range(processes)]


def failed(running: list[Running]) -> list[tuple[int, str]]:
    """Waits for all of them; returns the exit status of each, and its error messages."""
    wait(running)
    for one in running:
        one.errors.seek(0)
    return [(one.process.returncode, one.errors.read()) for one in running]


def errors_in(printed: str) -> int:
    """Lines that tell of an error of the program; libraries tell of theirs in the middle of a line."""
    return len(re.findall("(?m)^error:", printed))


def ended(running: list[Running]) -> list[str]:
    """Waits for a good end of all of them; returns what each printed."""
    wait(running)
    printed = []
    for one in running:
        for file in (one.output, one.errors):
            file.seek(0)
        assert one.process.returncode == 0, one.errors.read()[-3000:]
        printed.append(one.output.read())
    return printed


def wait(running: list[Running]) -> None:
    try:
        for one in running:
            one.process.wait(timeout=TIMEOUT)
    finally:
        for one in running:
            one.process.kill()


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("computed")
    alone = {f"{REFERENCE.get(task, task)}:1x1": None for task, _, _ in TOGETHER}
    cases = {
        number: [f"{task}:{mesh}" for task, processes, mesh in TOGETHER if processes == number] for number in (1, 2)
    }
    one = together(1, "--mode=steps", "--devices=8", f"--cases={','.join([*alone, *cases[1]])}", f"--output={folder}")
    two = together(2, "--mode=steps", "--devices=4", f"--cases={','.join(cases[2])}", f"--output={folder}")
    ended([*one, *two])
    return {path.stem: dict(np.load(path)) for path in folder.iterdir()}


def kind_of(key: str) -> str:
    return next((kind for kind in DERIVED if f"{kind}/" in key), "metrics" if key.startswith("metrics/") else "state")


def norm(value: np.ndarray) -> float:
    return float(np.linalg.norm(np.float64(value).ravel()))


@pytest.mark.parametrize("task, processes, mesh", TOGETHER)
def test_devices_and_processes_change_nothing(
    task: str,
    processes: int,
    mesh: str,
    computed: dict[str, dict[str, np.ndarray]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Within 1e-5 of the norm of each: metrics of every step, gradients of the first, the whole state after the last.

    A gradient or moment below 1/10,000 of all of them together is held to that floor: it is what little is left when
    far larger numbers cancel, and so is its rounding error. Those of key biases are zero but for rounding (a softmax
    does not change when all its inputs grow alike); they must vanish beside the whole.
    """
    alone, found = computed[f"{REFERENCE.get(task, task)}_{ALONE}"], computed[f"{task}_{processes}_processes_{mesh}"]
    assert alone.keys() == found.keys()
    kinds = {key: kind_of(key) for key, value in alone.items() if value.dtype.kind == "f"}
    whole = {kind: sum(norm(alone[key]) ** 2 for key in kinds if kinds[key] == kind) ** 0.5 for kind in DERIVED}
    worst: dict[str, tuple[float, str]] = {}
    for key, expected in alone.items():
        assert (found[key].shape, found[key].dtype) == (expected.shape, expected.dtype), key
        kind = kinds.get(key)
        if kind is None:
            np.testing.assert_array_equal(found[key], expected, err_msg=key)
        elif key.endswith("key/bias") and kind in DERIVED:
            assert max(norm(expected), norm(found[key])) < 1e-8 * whole[kind], key
        else:
            size = max(norm(expected), 1e-4 * whole[kind] if kind in DERIVED else 1e-30)
            worst[kind] = max(worst.get(kind, (0.0, "")), (norm(found[key] - np.float64(expected)) / size, key))
    with capsys.disabled():
        print(
            f"\n{task}, {processes} processes, mesh {mesh}: "
            + ", ".join(f"{kind} {value:.1e} ({key})" for kind, (value, key) in worst.items())
        )
    assert set(worst) == {"metrics", "state", *DERIVED}
    assert all(value < 1e-5 for value, _ in worst.values()), worst


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("told, stopped, place", [(4, 4, "tmp_path"), (5, 5, "tmp_path"), (5, 5, "bucket")])
def test_a_run_of_two_processes_stops_and_goes_on_in_one(
    told: int,
    stopped: int,
    place: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only one of the two is told to stop, before a step; both stop long before the next line of the log.

    After step 4 they evaluate, which both leave at the same batch, and of which no figures remain. One process takes
    the checkpoint up and ends where one that did everything alone does, its count of broken records included.
    """
    write_small_dataset(tmp_path, train=32, broken=(3, 10, 20))
    changes = (
        NO_CROSS,
        {"data": {"directory": str(tmp_path), "foil_split": "swapped", "max_broken_share": 0.2}},
        {"optimizer": {"epsilon": 1e-2}},
        {"train": {"epochs": 2.0, "log_every": 8, "evaluate_every": 4}, "evaluation": {"batch_size": 2}},
    )
    both, alone = request.getfixturevalue(place) / "both", tmp_path / "alone"
    flags = (
        f"--config={json.dumps(config_values(*changes))}",
        f"--stop_before={told}",
        f"--output={both}",
        "--devices=1",
    )
    outcomes = [json.loads(output.splitlines()[-1]) for output in ended(together(2, "--mode=train", *flags))]
    assert outcomes == [{"step": stopped, "finished": False}] * 2
    assert (both / "metrics.jsonl").exists() == (stopped == 5)  # with the figures of step 4
    caplog.set_level("INFO")
    for workdir in (both, alone):
        assert train(small_config(*changes), workdir).finished
    assert caplog.text.count("the run moves from 2 processes with the mesh data 2 x fsdp 1 to 1 process with") == 1
    states = saved_state(both), saved_state(alone)
    assert states[0].keys() == states[1].keys()
    for name, expected in states[1].items():
        if not name.endswith("key/bias"):  # these start at zero and grow by rounding errors alone
            assert norm(np.float64(states[0][name]) - np.float64(expected)) <= 1e-5 * norm(expected), name
    assert [line.get("broken_records") for line in log_lines(both)] == [None, 6, None]
    for line, expected in zip(log_lines(both), log_lines(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_too_many_broken_records_end_both_processes(tmp_path: Path) -> None:
    """Three records in all, so that no process alone would say this number."""
    write_small_dataset(tmp_path, train=32, broken=(3, 10, 20))
    data = {"directory": str(tmp_path), "validation_split": "", "max_broken_share": 0.05}
    values = config_values(CHEAPEST, {"data": data, "train": {"log_every": 4}})
    flags = (f"--config={json.dumps(values)}", f"--output={tmp_path}", "--devices=1")
    for status, errors in failed(together(2, "--mode=main", *flags)):
        assert status == 2, errors[-3000:]
        assert errors_in(errors) == 1
        assert "error: 3 of the 35 training records read are unusable, more than data.max_broken_share" in errors
        assert all(f"train-00000-of-00001#{number}: the image cannot be" in errors for number in (3, 10, 20))


def test_an_error_of_one_process_ends_both(tmp_path: Path) -> None:
    """One of the two finds a damaged shard while the other waits for its part of a step."""
    for number in range(2):
        write_small_dataset(tmp_path / str(number), shards=2)
    shard = next((tmp_path / "1").rglob("*train*00001-of-00002"))
    shard.write_bytes(b"x" * shard.stat().st_size)
    values = config_values(CHEAPEST, {"data": {"directory": f"{tmp_path}/PROCESS", "validation_split": ""}})
    flags = (f"--config={json.dumps(values)}", f"--output={tmp_path}", "--devices=1", "--leaving_seconds=2")
    (other, _), (status, errors) = failed(together(2, "--mode=main", *flags))
    assert (status, errors_in(errors)) == (2, 1), errors[-3000:]
    assert f"error: shard {shard} cannot be opened" in errors
    assert other != 0


SILENT = r"The following tasks are unhealthy \(stopped sending heartbeats\):\s+1\s"
LEADER = "what JAX calls the CoordinationService, or the leader, is process 0\n"
FIRST_IS_GONE = f"(?s){LEADER}.*CoordinationService/PollForErr"


@pytest.mark.parametrize(
    "victim, number, said",
    [(1, signal.SIGKILL, SILENT), (1, signal.SIGSTOP, SILENT), (0, signal.SIGKILL, FIRST_IS_GONE)],
)
def test_a_process_that_dies_ends_the_other_which_names_it(
    victim: int, number: signal.Signals, said: str, tmp_path: Path
) -> None:
    """It is gone, or silent, in the middle of training; the other waits for it in a step."""
    data = write_small_dataset(tmp_path / "data")
    train = {"epochs": 10000.0, "checkpoint_every": 0, "evaluate_every": 0, "log_every": 1}
    values = config_values(CHEAPEST, {"data": {"directory": str(data), "validation_split": ""}, "train": train})
    flags = (f"--config={json.dumps(values)}", f"--output={tmp_path}", "--devices=1", "--leaving_seconds=2")
    running = together(2, "--mode=main", *flags)
    try:
        end, log = time.monotonic() + TIMEOUT, tmp_path / "run" / "metrics.jsonl"
        while not (log.exists() and log_lines(tmp_path / "run")):
            assert time.monotonic() < end
            assert all(one.process.poll() is None for one in running)
            time.sleep(0.1)
        running[victim].process.send_signal(number)
        running[1 - victim].process.wait(timeout=TIMEOUT)
    finally:
        for one in running:
            one.process.kill()
    status, errors = failed(running)[1 - victim]
    assert status != 0
    assert re.search(said, errors), errors[-6000:]


def test_a_workdir_that_is_not_shared(tmp_path: Path) -> None:
    """Each process has a folder of its own under the same name; nothing has been saved there yet."""
    data = write_small_dataset(tmp_path / "data")
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    values = config_values(CHEAPEST, {"data": {"directory": str(data), "validation_split": ""}})
    flags = (f"--config={json.dumps(values)}", f"--output={tmp_path}/PROCESS", "--devices=1")
    for status, errors in failed(together(2, "--mode=main", *flags)):
        assert (status, errors_in(errors)) == (2, 1), errors[-3000:]
        assert "error: process 1 does not see what process 0 writes to" in errors
    assert not list((tmp_path / "0" / "run").iterdir())


def test_processes_that_differ_are_refused(tmp_path: Path) -> None:
    """Another seed is another program of the data: both would train, each on rows of its own."""
    data = write_small_dataset(tmp_path / "data")
    values = config_values(CHEAPEST, {"data": {"directory": str(data), "validation_split": ""}})
    values["train"]["seed"] = "PROCESS"
    flags = (f"--config={json.dumps(values)}".replace('"PROCESS"', "PROCESS"), f"--output={tmp_path}", "--devices=1")
    host = socket.gethostname()
    for status, errors in failed(together(2, "--mode=main", *flags)):
        assert (status, errors_in(errors)) == (2, 1), errors[-3000:]
        assert "error: the processes of this run differ; give all processes the same flags" in errors
        assert f"  - configuration train.seed: 0 to process 0 on {host}; 1 to process 1 on {host}\n" in errors


@pytest.mark.parametrize("why", ["held", "damaged"])
def test_what_one_process_refuses_both_hear(why: str, tmp_path: Path) -> None:
    """Process 0 alone takes the lock and looks for damage."""
    data, workdir = write_small_dataset(tmp_path / "data"), tmp_path / "run"
    (workdir / "checkpoints" / "9").mkdir(parents=True)
    values = config_values(CHEAPEST, {"data": {"directory": str(data), "validation_split": ""}})
    flags = (f"--config={json.dumps(values)}", f"--output={tmp_path}", "--devices=1")
    with held(workdir, "another run", "--workdir") if why == "held" else contextlib.nullcontext():
        ends = failed(together(2, "--mode=main", *flags))
    message = {
        "held": f"error: another run is at work in {workdir}; let it end, or choose another --workdir. It is process ",
        "damaged": f"error: the checkpoint of step 9 is damaged: {workdir}/checkpoints/9/config/metadata is absent; ",
    }
    for status, errors in ends:
        assert (status, errors_in(errors)) == (2, 1), errors[-3000:]
        assert message[why] in errors
