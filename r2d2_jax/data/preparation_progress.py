"""How far a preparation has come, shown, and whether too much of it is unusable."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence

import tqdm

from r2d2_jax.data.shard_tasks import News
from r2d2_jax.errors import UserError, bulleted

logger = logging.getLogger(__name__)

_FIRST_NAMES = 10  # how many skipped entries a message lists
_LOG_SECONDS = 10.0  # between progress lines where there is no terminal
_JUDGED_FROM = 1000  # entries; our decision: where their number is not known beforehand, fewer say nothing of the share


class Watch:
    """Counts what all processes report; shows a bar on a terminal, a line every ten seconds elsewhere.

    Attributes:
        entries: entries read so far, usable or not. skipped: those left out among them and among the annotations.
        first: the first ten of these, each with its place and reason.
    """

    def __init__(
        self, unit: str, max_broken_share: float, *, total: int | None, skipped: int, first: Sequence[str]
    ) -> None:
        """Starts counting.

        Args:
            unit: what weights count.
            max_broken_share: the largest tolerated share of entries left out, 0 to 1.
            total: number of entries, usable or not; None where it is not known beforehand.
            skipped: annotations that were left out before the entries are read; they count as entries.
            first: the first ten of these.
        """
        self._unit, self._max_broken_share, self._total = unit, max_broken_share, total
        self.entries, self.skipped, self.first = skipped, skipped, list(first)
        self._weight = self._resumed = 0
        self._bar = tqdm.tqdm(disable=True)
        for line in first:
            logger.warning("skipped %s", line)
        self.judge()

    def resume(self, weight: int, entries: int, skipped: Sequence[str]) -> None:
        """Counts a shard that an earlier, interrupted preparation finished."""
        self._resumed += weight
        self._count(News(weight, entries, list(skipped)))

    @contextlib.contextmanager
    def showing(self, weight: int) -> Iterator[None]:
        """Shows the progress meanwhile; `weight` is that of all shards."""
        self._all, self._start, self._next_line = weight, time.monotonic(), time.monotonic() + _LOG_SECONDS
        self._entries_before = self.entries
        with tqdm.tqdm(total=weight, initial=self._weight, unit=self._unit, unit_scale=self._unit == "B",
                       disable=not sys.stderr.isatty()) as self._bar:
            yield

    def take(self, news: News) -> None:
        """Counts and shows.

        Raises:
            UserError: as `judge`.
        """
        for line in news.skipped[: _FIRST_NAMES - len(self.first)]:
            logger.warning("skipped %s", line)
        self._count(news)
        self._bar.update(news.weight)
        self._line_in_time()
        self.judge()

    def judge(self, *, finished: bool = False) -> None:
        """Stops a preparation that leaves out too much.

        Args:
            finished: whether all has been read.

        Raises:
            UserError: more than the tolerated share was left out; raised as soon as that is certain, or, where the
                number of entries is not known, probable.
        """
        total = self._total
        if total is None and not finished and self.entries < _JUDGED_FROM:
            return
        whole = self.entries if total is None else total
        if self.skipped > self._max_broken_share * whole:
            read = " read" if total is None else ""
            raise UserError(f"{self.skipped:,} of the {whole:,} entries{read} are unusable so far, more than "
                            f"--max_broken_share={self._max_broken_share:g} allows; mend them or raise the share. The "
                            f"first:\n{bulleted(self.first)}")

    def _count(self, news: News) -> None:
        self._weight += news.weight
        self.entries += news.entries
        self.skipped += len(news.skipped)
        self.first += news.skipped[: _FIRST_NAMES - len(self.first)]

    def _line_in_time(self) -> None:
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + _LOG_SECONDS
            seconds = now - self._start
            here = self._weight - self._resumed
            left = f"{(self._all - self._weight) * seconds / here:,.0f} s left" if here else "time left unknown"
            rate = (self.entries - self._entries_before) / seconds
            print(f"{self.entries:,} entries, {self._weight / self._all:.1%}, {rate:,.0f} entries/s, {left}",
                  file=sys.stderr)
