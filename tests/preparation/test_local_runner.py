"""A stop signal that comes while an executor may hold a lock, which nobody would release any more."""

import concurrent.futures
import functools
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from r2d2_jax.preparation.local_runner import Report, run_tasks
from r2d2_jax.preparation.progress import Progress


def _write_and_wait(folder: Path, task: int, report: Report) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(300)


def _read_one(task: int, report: Report) -> None:
    report(Progress(entries=1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_raised_between_two_looks_at_the_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    returned = []
    wait = concurrent.futures.wait

    def signalled_wait(*arguments: Any) -> Any:
        result = wait(*arguments)
        if list(tmp_path.iterdir()):
            signal.raise_signal(number)
            returned.append(number)
        return result

    monkeypatch.setattr(concurrent.futures, "wait", signalled_wait)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as programs have it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_tasks(functools.partial(_write_and_wait, tmp_path), range(4), lambda progress: None, 2)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert returned == [number]
    for process in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process.name), 0)


def test_it_is_raised_when_it_comes_with_the_last_result(monkeypatch: pytest.MonkeyPatch) -> None:
    shutdown = concurrent.futures.ProcessPoolExecutor.shutdown

    def signalled_shutdown(pool: concurrent.futures.ProcessPoolExecutor, **settings: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        shutdown(pool, **settings)

    monkeypatch.setattr(concurrent.futures.ProcessPoolExecutor, "shutdown", signalled_shutdown)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(_read_one, range(2), lambda progress: None, 2)


def _die(task: int, report: Report) -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # as a batch system does, which sends it to all processes


def test_a_signal_to_all_processes_is_no_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = concurrent.futures.wait

    def signalled_wait(*arguments: Any) -> Any:
        result = wait(*arguments)
        if result.done:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(concurrent.futures, "wait", signalled_wait)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(_die, range(4), lambda progress: None, 2)


def test_a_process_that_is_killed_is_named() -> None:
    with pytest.raises(BrokenProcessPool):
        run_tasks(_die, range(4), lambda progress: None, 2)


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        taken = []

        def take(progress: Progress) -> None:
            signal.raise_signal(signal.SIGTERM)
            taken.append(progress.entries)

        run_tasks(_read_one, range(2), take, 2)
        assert taken == [1, 1]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
