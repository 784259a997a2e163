"""Unusable records: how they are named and counted, and when there are too many of them."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)


class UnusableRecord(Exception):
    """One line, image or record from which a model cannot learn. The message gives the reason, not the place."""


def problem(name: str, error: UnusableRecord) -> str:
    """One line that says which record is unusable and why."""
    return f"{name}: {error}".replace("\n", " ")


class UnusableRecords:
    """Counts the unusable records among those that all processes read, and stops the run when there are too many.

    Attributes:
        read: number of records read, usable or not.
        unusable: number of unusable ones among them; in every epoch a record counts again.
        first: one line for each of the first ten: where it lies, and what is wrong with it.
    """

    def __init__(
        self,
        epoch_size: int,
        max_broken_share: float,
        gather_json: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
    ) -> None:
        """Starts counting at zero.

        Args:
            epoch_size: number of records of the training split.
            max_broken_share: the largest tolerated share of unusable records among those read, 0 to 1.
            gather_json: gives the counts of all processes for those of this one; None where there is only one.
        """
        self.epoch_size = epoch_size
        self.max_broken_share = max_broken_share
        self._gather_json = gather_json
        self.read, self.unusable = 0, 0
        self.first: list[str] = []
        self._own = _nothing_counted()

    def update(self, problems: np.ndarray) -> None:
        """Counts one batch of this process and logs its unusable records; a single process also checks the share.

        Args:
            problems: str [b'], the column of that name in a batch of `train_batches`.

        Raises:
            UserError: see `share`.
        """
        new = [line for row in problems if row for line in str(row).split("\n")]
        self._own["read"] += len(problems) + len(new)
        self._own["broken"] += len(new)
        for line in new:
            logger.warning("unusable record, the next one takes its place: %s", line)
        self._own["first"] += new[: FIRST_NAMES - len(self._own["first"])]
        if self._gather_json is None:
            self.share()

    def share(self) -> None:
        """Adds what every process has counted since the last call. All processes call it, and all decide alike.

        Raises:
            UserError: the share of unusable records is above the limit by more than three standard deviations of what
                the unfinished epoch may hold by chance, after 1,000 records or a whole epoch; or, earlier, more than 10
                are unusable and the rest of the epoch cannot bring the share below the limit (our decision).
        """
        for counted in [self._own] if self._gather_json is None else self._gather_json(self._own):
            self.read += counted["read"]
            self.unusable += counted["broken"]
            self.first += counted["first"][: FIRST_NAMES - len(self.first)]
        self._own = _nothing_counted()
        self._check()

    def state(self) -> dict[str, Any]:
        """The counts of all processes, as plain JSON values for a checkpoint."""
        return {"read": self.read, "broken": self.unusable, "first": list(self.first)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from the counts that `state` returned; every process calls it."""
        self.read, self.unusable, self.first = int(state["read"]), int(state["broken"]), list(state["first"])
        self._own = _nothing_counted()

    def _check(self) -> None:
        share, epoch = self.max_broken_share, self.epoch_size
        by_chance = 3 * math.sqrt(share * (self.read % epoch))
        judged = self.read >= min(1000, epoch) and self.unusable > share * self.read + by_chance
        hopeless = self.unusable > max(10, share * epoch * math.ceil(self.read / epoch))
        if judged or hopeless:
            raise UserError(
                f"{self.unusable} of the {self.read} training records read are unusable, more than "
                f"data.max_broken_share = {share:g} allows; mend them and prepare the dataset again, or "
                "raise data.max_broken_share. The first:\n" + "\n".join(self.first)
            )


def _nothing_counted() -> dict[str, Any]:
    return {"read": 0, "broken": 0, "first": []}
