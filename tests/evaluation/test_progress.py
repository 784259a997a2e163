"""A bar on a terminal, a line now and then in a log, and nothing of what is short."""

import io
import logging
import sys
import time

import numpy as np
import pytest

from r2d2_jax.evaluation import progress as module
from r2d2_jax.evaluation.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that each batch moves by 20 seconds."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    return clock


def run(progress: Progress, now: list[float], batches: int, seconds: float = 20.0) -> None:
    for _ in progress.over(np.zeros((10, 1)) for _ in range(batches)):
        now[0] += seconds


def test_lines_of_a_log(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """What was done before counts, but not for the rate: 10 rows in 20 seconds."""
    caplog.set_level(logging.INFO)
    with Progress("pairs", 95) as progress:
        progress.skip_to(40)
        run(progress, now, 6)
        assert progress.done == 95, "the last batch is filled up"
    assert caplog.messages == [
        "60/95 pairs, 0.5 a second, 70 s left",
        "80/95 pairs, 0.5 a second, 30 s left",
        "95/95 pairs, 0.458 a second, 0 s left",
    ]


def test_what_is_short_says_nothing(
    now: list[float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with Progress("pairs", 100) as progress:
        run(progress, now, 10, seconds=2.9)
    assert caplog.messages == []
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("pairs", 100) as progress:
        progress.skip_to(50)
        for _ in progress.over(np.zeros((25, 1)) for _ in range(2)):
            time.sleep(0.15)  # tqdm draws ten times a second
    assert "100/100" in terminal.getvalue()
    assert "pairs" in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 2)[1].strip() == "", "the bar was wiped out"
    assert caplog.messages == []
