"""Progress of a preparation or a check: what a worker reports, what a person sees, and when to stop early.

A worker reports about five times a second rather than once a shard: a shard of 10,000 large photographs takes minutes,
for which the bar would stand still and a corpus with too many unusable entries would go on being read.
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tqdm

from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.2  # between two reports of a worker
_LOG_SECONDS = 10.0  # between progress lines where there is no terminal
_JUDGED_FROM = 1000  # entries; our decision: of a corpus of unknown size, the share of so many may always be unusable


@dataclass
class Progress:
    """What was read since the last report.

    weight, entries: how much was read. skipped: how many of the entries were unusable. first: at most ten of these with
    place and reason, so that a message fits one pipe write even if its sender is killed.
    """

    weight: int = 0
    entries: int = 0
    skipped: int = 0
    first: list[str] = field(default_factory=list)


class Reporter:
    """Adds up what a worker reads and reports it about five times a second."""

    def __init__(self, report: Callable[[Progress], Any]) -> None:
        """`report` is called with the progress since its last call."""
        self._report = report
        self._begin()

    def count(self, weight: int, unusable: str = "") -> None:
        """Counts an entry of this weight; `unusable` is the place and reason of one that is left out."""
        progress = self._progress
        progress.weight += weight
        progress.entries += 1
        if unusable:
            progress.skipped += 1
            if len(progress.first) < FIRST_NAMES:
                progress.first.append(unusable)
        if time.monotonic() > self._begun + _REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Reports what is left."""
        self._report(self._progress)
        self._begin()

    def _begin(self) -> None:
        self._progress, self._begun = Progress(), time.monotonic()


class ProgressBar:
    """Shows share, rate and remaining time of what is read: a bar on a terminal, a line every ten seconds in a log.

    Attributes:
        entries: entries read so far, usable or not.
    """

    def __init__(self, unit: str, weight: int, entries: int = 0) -> None:
        """Starts counting.

        Args:
            unit: what weights count, " entries" or "B".
            weight: sum of the weights of all entries.
            entries: number of entries that were read before, without a weight.
        """
        self._unit, self._all, self._weight, self.entries = unit, weight, 0, entries
        self._bar = tqdm.tqdm(disable=True)
        self._next_line = math.inf
        self._start()

    def count(self, progress: Progress) -> None:
        """Counts without showing, such as what an earlier, interrupted run read."""
        self._weight += progress.weight
        self.entries += progress.entries

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Shows the progress meanwhile."""
        self._start()
        with tqdm.tqdm(
            total=self._all,
            initial=self._weight,
            unit=self._unit,
            unit_scale=self._unit == "B",
            disable=not sys.stderr.isatty(),
        ) as self._bar:
            yield

    def take(self, progress: Progress) -> None:
        """Counts and shows what a worker reports."""
        self.count(progress)
        self._bar.update(progress.weight)
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + _LOG_SECONDS
            print(self._line(now - self._began), file=sys.stderr)

    def _start(self) -> None:
        self._began = time.monotonic()
        self._next_line = self._began + _LOG_SECONDS
        self._weight_before, self._entries_before = self._weight, self.entries

    def _line(self, seconds: float) -> str:
        read = self._weight - self._weight_before
        left = f"{(self._all - self._weight) * seconds / read:,.0f} s left" if read else "time left unknown"
        rate = (self.entries - self._entries_before) / seconds
        return f"{self.entries:,} entries, {self._weight / self._all:.1%}, {rate:,.0f} entries/s, {left}"


class Watch(ProgressBar):
    """The progress of a preparation, which stops when too many entries are unusable.

    Attributes:
        skipped: unusable entries so far, lines of annotation files included.
        first: the first ten of these, each with its place and reason.
    """

    def __init__(
        self,
        unit: str,
        weight: int,
        max_broken_share: float,
        *,
        total: int | None = None,
        skipped: int = 0,
        first: Sequence[str] = (),
    ) -> None:
        """Starts counting.

        Args:
            unit, weight: as for `ProgressBar`.
            max_broken_share: the largest tolerated share of unusable entries, 0 to 1.
            total: number of entries, usable or not; None where it is not known beforehand.
            skipped: annotations found unusable before any entry is read; they count as entries.
            first: the first ten of these.

        Raises:
            UserError: as `judge`.
        """
        super().__init__(unit, weight, skipped)
        self._max_broken_share, self._total = max_broken_share, total
        self.skipped, self.first = skipped, list(first)
        _warn(first)
        self.judge()

    def count(self, progress: Progress) -> None:
        """Counts without showing."""
        super().count(progress)
        self.skipped += progress.skipped
        self.first += progress.first[: FIRST_NAMES - len(self.first)]

    def take(self, progress: Progress) -> None:
        """Counts, shows, and names the first ten unusable entries.

        Raises:
            UserError: as `judge`.
        """
        _warn(progress.first[: FIRST_NAMES - len(self.first)])
        super().take(progress)
        self.judge()

    def judge(self, *, finished: bool = False) -> None:
        """Stops a preparation that leaves out too much.

        Args:
            finished: whether everything has been read.

        Raises:
            UserError: more than the tolerated share is unusable; raised as soon as that is certain. Where the number of
                entries is not known, as soon as chance does not explain it (three standard deviations).
        """
        total = self._total
        whole = self.entries if total is None else total
        allowed = self._max_broken_share * whole
        if total is None and not finished:
            allowed = max(allowed + 3 * math.sqrt(allowed), self._max_broken_share * _JUDGED_FROM)
        if self.skipped > allowed:
            read = " read" if total is None else ""
            raise UserError(
                f"{self.skipped:,} of the {whole:,} entries{read} are unusable so far, more than "
                f"--max_broken_share={self._max_broken_share:g} allows; mend them or raise the share. The "
                f"first:\n{bulleted(self.first)}"
            )


def _warn(unusable: Sequence[str]) -> None:
    for line in unusable:
        logger.warning("skipped %s", line)
