"""Records that nothing can be learned from: how they are named, counted, and when there are too many of them."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)


class UnusableRecord(Exception):
    """A single line, image or record that nothing can be learned from; the message is the reason, not the place."""


def problem(name: str, error: UnusableRecord) -> str:
    """One line that says which record is unusable and why."""
    return f"{name}: {error}".replace("\n", " ")


class BrokenRecords:
    """Counts the unusable records among those that all processes read, and stops the run when there are too many.

    Attributes:
        read: records read, usable or not.
        broken: unusable ones among them; one that is met again in a later epoch counts again.
        first: where the first ten lie and what is wrong with each.
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
            max_broken_share: the largest tolerated share of the records read, 0 to 1.
            gather_json: gives the counts of all processes for those of this one; None where there is only one.
        """
        self.epoch_size = epoch_size
        self.max_broken_share = max_broken_share
        self._gather_json = gather_json
        self.read, self.broken = 0, 0
        self.first: list[str] = []
        self._own = _nothing_counted()

    def update(self, problems: np.ndarray) -> None:
        """Counts one batch of this process and logs what is new; a process that is alone also judges.

        Args:
            problems: str [b'], of a batch of `train_batches`.

        Raises:
            UserError: as `share`.
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
        """Adds what every process has counted since the last time. All of them call this, and all judge alike.

        Raises:
            UserError: the share is exceeded, by more than chance brings into the part of an epoch that was read last
                (three standard deviations). It is looked at once 1,000 records or a whole epoch were read, and before
                that as soon as the rest of the epoch could not bring it back down (and more than 10 are broken); our
                decision.
        """
        for counted in [self._own] if self._gather_json is None else self._gather_json(self._own):
            self.read += counted["read"]
            self.broken += counted["broken"]
            self.first += counted["first"][: FIRST_NAMES - len(self.first)]
        self._own = _nothing_counted()
        self._check()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain JSON values: all that was shared."""
        return {"read": self.read, "broken": self.broken, "first": list(self.first)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave, on every process."""
        self.read, self.broken, self.first = int(state["read"]), int(state["broken"]), list(state["first"])
        self._own = _nothing_counted()

    def _check(self) -> None:
        share, epoch = self.max_broken_share, self.epoch_size
        by_chance = 3 * math.sqrt(share * (self.read % epoch))
        judged = self.read >= min(1000, epoch) and self.broken > share * self.read + by_chance
        hopeless = self.broken > max(10, share * epoch * math.ceil(self.read / epoch))
        if judged or hopeless:
            raise UserError(
                f"{self.broken} of the {self.read} training records read are unusable, more than "
                f"data.max_broken_share = {share:g} allows; mend them and prepare the dataset again, or "
                "raise data.max_broken_share. The first:\n" + "\n".join(self.first)
            )


def _nothing_counted() -> dict[str, Any]:
    return {"read": 0, "broken": 0, "first": []}
