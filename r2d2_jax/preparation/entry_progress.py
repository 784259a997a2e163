"""How far the reading of entries has come, as people see it: a bar on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Iterator

import tqdm

_LOG_SECONDS = 10.0  # between progress lines where there is no terminal


class EntryProgress:
    """Shows the share that is read, the rate and the time that remains.

    Attributes:
        entries: entries read so far.
    """

    def __init__(self, unit: str, entries: int = 0) -> None:
        """Starts counting.

        Args:
            unit: what weights count, " entries" or "B".
            entries: number of entries that were read before.
        """
        self._unit, self.entries = unit, entries
        self._weight = self._resumed = 0
        self._bar = tqdm.tqdm(disable=True)

    def resume(self, weight: int, entries: int) -> None:
        """Counts what was read in an earlier, interrupted run."""
        self._resumed += weight
        self._count(weight, entries)

    @contextlib.contextmanager
    def showing(self, weight: int) -> Iterator[None]:
        """Shows the progress meanwhile; `weight` is that of all there is to read."""
        self._all, self._start, self._next_line = weight, time.monotonic(), time.monotonic() + _LOG_SECONDS
        self._entries_before = self.entries
        with tqdm.tqdm(
            total=weight,
            initial=self._weight,
            unit=self._unit,
            unit_scale=self._unit == "B",
            disable=not sys.stderr.isatty(),
        ) as self._bar:
            yield

    def advance(self, weight: int, entries: int) -> None:
        """Counts and shows what was read since the last time."""
        self._count(weight, entries)
        self._bar.update(weight)
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + _LOG_SECONDS
            print(self._line(now - self._start), file=sys.stderr)

    def _count(self, weight: int, entries: int) -> None:
        self._weight += weight
        self.entries += entries

    def _line(self, seconds: float) -> str:
        here = self._weight - self._resumed
        left = f"{(self._all - self._weight) * seconds / here:,.0f} s left" if here else "time left unknown"
        rate = (self.entries - self._entries_before) / seconds
        return f"{self.entries:,} entries, {self._weight / self._all:.1%}, {rate:,.0f} entries/s, {left}"
