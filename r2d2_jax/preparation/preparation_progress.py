"""How far a preparation has come, shown, and whether too much of it is unusable."""

import contextlib
import logging
import math
from collections.abc import Sequence

from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted
from r2d2_jax.preparation.entry_progress import EntryProgress
from r2d2_jax.preparation.progress import News

logger = logging.getLogger(__name__)

_JUDGED_FROM = 1000  # entries; our decision: where their number is not known, as many unusable ones are always borne


class Watch:
    """Counts what all processes report; shows a bar on a terminal, a line every ten seconds elsewhere.

    Attributes:
        skipped: entries left out, among those read and among the annotations.
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
        self._max_broken_share, self._total = max_broken_share, total
        self._progress = EntryProgress(unit, skipped)
        self.skipped, self.first = skipped, list(first)
        for line in first:
            logger.warning("skipped %s", line)
        self.judge()

    @property
    def entries(self) -> int:
        """Entries read so far, usable or not."""
        return self._progress.entries

    def resume(self, news: News) -> None:
        """Counts a shard that an earlier, interrupted preparation finished."""
        self._progress.resume(news.weight, news.entries)
        self._skip(news)

    def showing(self, weight: int) -> contextlib.AbstractContextManager[None]:
        """Shows the progress meanwhile; `weight` is that of all shards."""
        return self._progress.showing(weight)

    def take(self, news: News) -> None:
        """Counts and shows.

        Raises:
            UserError: as `judge`.
        """
        for line in self._skip(news):
            logger.warning("skipped %s", line)
        self._progress.advance(news.weight, news.entries)
        self.judge()

    def judge(self, *, finished: bool = False) -> None:
        """Stops a preparation that leaves out too much.

        Args:
            finished: whether all has been read.

        Raises:
            UserError: more than the tolerated share was left out; raised as soon as that is certain, or, where the
                number of entries is not known, once it is more than chance brings (three standard deviations).
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

    def _skip(self, news: News) -> list[str]:
        """Returns those that are among the first ten of all."""
        named = news.first[: FIRST_NAMES - len(self.first)]
        self.skipped += news.skipped
        self.first += named
        return named
