"""What a person sees of a long evaluation: a bar on a terminal, a line now and then in a log, nothing if short."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

import jax
from tqdm import tqdm

logger = logging.getLogger(__name__)
LOG_SECONDS = 30.0  # before the first line and between two: evaluations within a training are shorter than that
Rows = TypeVar("Rows", bound=Sized)
_before_each_batch: list[Callable[[], None]] = []


@contextlib.contextmanager
def before_each_batch(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` before each batch of every evaluation within, which it ends by raising.

    All processes of an evaluation go through as many batches, so `act` may wait for the others.
    """
    _before_each_batch.append(act)
    try:
        yield
    finally:
        _before_each_batch.remove(act)


class Progress:
    """Rows done, with rate and remaining time; the first process alone shows it.

    Attributes:
        done: rows done so far.
    """

    def __init__(self, unit: str, total: int) -> None:
        """`unit` says what the rows are, such as "images"."""
        self.done = 0
        self._unit, self._total, self._passed = unit, total, 0
        self._leads = jax.process_index() == 0
        # Not left behind: the bar of a training, below which it appears, stays the last line.
        hidden = not (self._leads and sys.stderr.isatty())
        self._bar = tqdm(total=total, unit=f" {unit}", leave=False, dynamic_ncols=True, disable=hidden)
        self._start = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def skip_to(self, done: int) -> None:
        """Counts rows that were done before this process began, but not for the rate."""
        rows = max(0, done - self.done)
        self.done += rows
        if not self._bar.disable:
            self._bar.initial, self._bar.n = self._bar.initial + rows, self._bar.n + rows
            self._bar.last_print_n += rows

    def over(self, batches: Iterable[Rows]) -> Iterator[Rows]:
        """Yields the batches and counts the rows of each once the next is asked for."""
        for batch in batches:
            for act in _before_each_batch:
                act()
            yield batch
            self._take(len(batch))

    def _take(self, rows: int) -> None:
        rows = min(rows, self._total - self.done)  # the last batch of images is filled up
        self._passed, self.done = self._passed + rows, self.done + rows
        self._bar.update(rows)
        now = time.monotonic()
        if self._leads and self._bar.disable and now - self._last > LOG_SECONDS:
            self._last, rate = now, self._passed / (now - self._start)
            left = (self._total - self.done) / rate
            logger.info("%d/%d %s, %.3g a second, %.0f s left", self.done, self._total, self._unit, rate, left)
