"""What a process that reads entries tells the one that shows the progress and judges."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from r2d2_jax.errors import FIRST_NAMES

_SECONDS = 0.2  # between two news


@dataclass
class News:
    """How far some process has come since its last news.

    weight, entries: how much was read. skipped: how many of the entries were left out. first: at most ten of these, for
    what a process that is killed was about to say must fit into the pipe between it and the one that listens.
    """

    weight: int = 0
    entries: int = 0
    skipped: int = 0
    first: list[str] = field(default_factory=list)


class Reporter:
    """Gathers what is read, and tells it about five times a second."""

    def __init__(self, tell: Callable[[News], Any]) -> None:
        """Starts with nothing to tell; `tell` is given the news."""
        self._tell = tell
        self._begin()

    def skip(self, entry: str) -> None:
        """Counts an entry that is left out; `entry` is its place and reason."""
        self._news.skipped += 1
        if len(self._news.first) < FIRST_NAMES:
            self._news.first.append(entry)

    def read(self, weight: int) -> None:
        """Counts an entry, left out or not, of this weight."""
        self._news.weight += weight
        self._news.entries += 1
        if time.monotonic() > self._told + _SECONDS:
            self.tell()

    def tell(self) -> None:
        """Tells what there is."""
        self._tell(self._news)
        self._begin()

    def _begin(self) -> None:
        self._news, self._told = News(), time.monotonic()
