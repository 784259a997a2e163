"""Figures of a part of a corpus, which add up to those of the whole in memory that does not grow with the corpus."""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

FIRST_NAMES = 5  # how many of each kind a report names; our decision
_DIGITS = 4  # leading digits of a value that a Spread keeps


class Figures:
    """Base of dataclasses whose fields are numbers, Counters or other figures; they add up field by field.

    A Counter is for things of which every corpus has few kinds: formats, classes, characters.
    """

    def merge(self, other: Any) -> None:
        """Adds the figures of a later part."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, int):
                setattr(self, field.name, mine + others)
            elif isinstance(mine, Counter):
                mine.update(others)
            else:
                mine.merge(others)


@dataclass
class Spread:
    """A histogram of numbers from 0 up, exact below 10,000.

    Larger numbers are rounded down to four digits before they are counted, so a power of ten has at most 9,000 counts;
    minimum and maximum stay exact.
    """

    counts: Counter[int] = dataclasses.field(default_factory=Counter)
    minimum: int | None = None
    maximum: int | None = None

    def add(self, value: int) -> None:
        """Counts one number."""
        step = 10 ** max(0, len(str(value)) - _DIGITS)
        self.counts[value // step * step] += 1
        self._widen(value, value)

    def merge(self, other: "Spread") -> None:
        """Adds the numbers of another part."""
        self.counts.update(other.counts)
        if other.minimum is not None and other.maximum is not None:
            self._widen(other.minimum, other.maximum)

    def quantile(self, share: float) -> int | None:
        """The smallest counted number that at least this share of the numbers do not exceed; None without numbers."""
        wanted = max(1, math.ceil(share * self.counts.total()))
        passed = 0
        for value in sorted(self.counts):
            passed += self.counts[value]
            if passed >= wanted:
                return value
        return None

    def above(self, limit: int) -> int:
        """How many numbers are greater than `limit`, which is less than 10,000."""
        return sum(count for value, count in self.counts.items() if value > limit)

    def below(self, limit: int) -> int:
        """How many numbers are smaller than `limit`, which is at most 10,000."""
        return sum(count for value, count in self.counts.items() if value < limit)

    def _widen(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum if self.minimum is None else min(self.minimum, minimum)
        self.maximum = maximum if self.maximum is None else max(self.maximum, maximum)


@dataclass
class Named(Figures):
    """Counts of things by kind, with the places of the first few."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    first: "FirstNames" = dataclasses.field(default_factory=lambda: FirstNames())

    def add(self, kind: str, name: str) -> None:
        """Counts one."""
        self.counts[kind] += 1
        self.first.add(kind, name)


@dataclass
class FirstNames:
    """The first five names of each kind."""

    names: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Keeps the name unless five of its kind are kept already."""
        kept = self.names.setdefault(kind, [])
        if len(kept) < FIRST_NAMES:
            kept.append(name)

    def merge(self, other: "FirstNames") -> None:
        """Adds the names of a later part."""
        for kind, names in other.names.items():
            for name in names:
                self.add(kind, name)
