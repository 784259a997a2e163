"""The first signal is noted, the second ends the process at once, and the old handlers come back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_corpus import until

from r2d2_jax.train.signals import SIGNALS, StopRequest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_noted_and_handlers_come_back(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert (stop.received, stop.agreed(1)) == (None, False)
        signal.raise_signal(number)
        assert (stop.received, stop.agreed(1)) == (number, True)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert f"{number.name}: saving and leaving as soon as this step is done" in capfd.readouterr().err


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyError), StopRequest():
        raise KeyError
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("numbers", [("SIGINT", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_second_signal_leaves_at_once(numbers: tuple[str, str]) -> None:
    program = f"""
import signal
from r2d2_jax.train.signals import StopRequest
try:
    with StopRequest():
        signal.raise_signal(signal.{numbers[0]})
        print("noted", flush=True)
        signal.raise_signal(signal.{numbers[1]})
        print("still here", flush=True)
finally:
    print("cleaned up", flush=True)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == ["noted"], done.stderr
    assert done.returncode == 128 + getattr(signal, numbers[1])


def test_leaving_at_once_leaves_no_worker_behind() -> None:
    program = """
import multiprocessing, signal, time
from r2d2_jax.train.signals import StopRequest
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
worker.start()
with StopRequest():
    print(worker.pid, flush=True)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == 130
    until(lambda: has_ended(int(done.stdout)))


def has_ended(process: int) -> bool:
    """Whether a process has; it may be a while before anybody takes notice of its end."""
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
