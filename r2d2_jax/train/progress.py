"""What a person sees of a long run: a progress bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

logger = logging.getLogger(__name__)
# Without tqdm's steps per second: pairs per second say the same, and all of it fits into 80 columns.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """Steps done, pairs per second, the share of the time spent waiting for data, and the time that remains.

    Args:
        first_step: steps done before.
        total_steps: steps of the whole run.
        batch_size: pairs per step.
        active: False shows nothing (all processes but one).
    """

    def __init__(self, first_step: int, total_steps: int, batch_size: int, active: bool) -> None:
        self._total, self._batch_size, self._active = total_steps, batch_size, active
        self._bar = None
        if active and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=first_step, dynamic_ncols=True, bar_format=_BAR)
        self._mark(first_step)

    def _mark(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch."""
        self._waited += seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes what is not training, such as an evaluation, from the rate and from the share of waiting."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def stepped(self) -> None:
        """Moves the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Shows where the run is; returns pairs/s and the data-wait share since the last report."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate = (step - self._step) * self._batch_size / seconds
        speed = {"pairs_per_second": rate, "data_wait_share": self._waited / seconds}
        remaining = (self._total - step) * self._batch_size / rate if rate else float("nan")
        text = f"loss {means['loss']:.3f}  {rate:.0f} pairs/s  data wait {speed['data_wait_share']:.0%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif self._active:
            logger.info("step %d/%d  %s  remaining %s", step, self._total, text, clock(remaining))
        self._mark(step)
        return speed

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds; "unknown" for NaN."""
    if seconds != seconds:
        return "unknown"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
