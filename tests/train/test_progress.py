"""Rates, waiting shares and remaining time, with a clock that the test moves."""

import io
import logging

import pytest

from r2d2_jax.train import progress as module
from r2d2_jax.train.progress import Progress


class Clock:
    """Stands in for `time.perf_counter`."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    return clock


def test_speed_and_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(first_step=10, total_steps=4000, batch_size=8, active=True)
    progress.waited(1.5)
    progress.waited(0.5)
    clock.now += 20.0
    with caplog.at_level(logging.INFO):
        speed = progress.report(60, {"loss": 1.23456})
    assert speed == pytest.approx({"pairs_per_second": 20.0, "data_wait_share": 0.1})
    (line,) = [record.getMessage() for record in caplog.records]
    # 3940 steps of 8 pairs at 20 pairs/s are 1576 s.
    assert line == "step 60/4000  loss 1.235  20 pairs/s  data wait 10%  remaining 0:26:16"


def test_each_report_measures_anew(clock: Clock) -> None:
    progress = Progress(0, 100, 8, active=True)
    progress.waited(5.0)
    clock.now += 10.0
    progress.report(5, {"loss": 1.0})
    clock.now += 4.0
    assert progress.report(10, {"loss": 1.0}) == pytest.approx({"pairs_per_second": 10.0, "data_wait_share": 0.0})


@pytest.mark.parametrize("pause_at", [50, 75, 99])
def test_a_pause_does_not_count(clock: Clock, pause_at: int, caplog: pytest.LogCaptureFixture) -> None:
    """Steady 200 steps/s of 8 pairs, whether the pause is at a report or between two."""
    progress, speeds = Progress(0, 200, 8, active=True), []
    for step in range(1, 151):
        progress.waited(0.001)
        clock.now += 0.005
        if step % 50 == 0:
            with caplog.at_level(logging.INFO):
                speeds.append(progress.report(step, {"loss": 1.0}))
        if step == pause_at:
            with progress.pause():
                clock.now += 1000.0
    assert speeds == [pytest.approx({"pairs_per_second": 1600.0, "data_wait_share": 0.2})] * 3
    assert all("remaining 0:00:00" in record.getMessage() for record in caplog.records)


def test_no_step_since_the_last_report(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(5, 100, 8, active=True)
    clock.now += 1.0
    with caplog.at_level(logging.INFO):
        assert progress.report(5, {"loss": 1.0})["pairs_per_second"] == 0
    assert "remaining unknown" in caplog.text


def test_other_processes_show_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(0, 100, 8, active=False)
    clock.now += 2.0
    with caplog.at_level(logging.INFO):
        assert progress.report(10, {"loss": 1.0})["pairs_per_second"] == pytest.approx(40.0)
    assert not caplog.records


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    progress = Progress(first_step=3, total_steps=5, batch_size=8, active=True)
    progress.stepped()
    progress.report(4, {"loss": 12.5})
    progress.stepped()
    progress.close()
    assert "5/5" in terminal.getvalue()
    assert "loss 12.500" in terminal.getvalue()


def test_the_bar_of_a_long_run_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bar = module.tqdm(total=488_281, initial=90_000, bar_format=module._BAR, file=io.StringIO(), ncols=80)
    bar.set_postfix_str("loss 14.826  12030 pairs/s  data wait 12%")
    line = str(bar)
    assert len(line) <= 80
    assert line.endswith("data wait 12%]")
