"""When there are too many unusable records, in one process and in several."""

import logging
from typing import Any

import numpy as np
import pytest

from r2d2_jax.data.broken import BrokenRecords
from r2d2_jax.errors import UserError


def test_broken_share_is_judged_after_an_epoch() -> None:
    counter = BrokenRecords(epoch_size=50, max_broken_share=0.1)
    counter.update(np.array(["", "r#1: bad", "", ""]))
    assert (counter.read, counter.broken, counter.first) == (5, 1, ["r#1: bad"])
    counter.update(np.array([""] * 45))
    counter.update(np.array(["r#2: bad\nr#3: worse", *[""] * 3]))
    with pytest.raises(UserError, match=r"7 of the 61 training records read are unusable, more than "
                                        r"data.max_broken_share = 0.1 allows; (.|\n)*r#1: bad\nr#2: bad\nr#3: worse"):
        counter.update(np.array(["r#4: bad\nr#5: bad\nr#6: bad\nr#7: bad"]))


def test_broken_share_that_cannot_recover_stops_at_once() -> None:
    counter = BrokenRecords(epoch_size=500, max_broken_share=0.01)
    counter.update(np.array(["r#0: bad"] * 10))
    with pytest.raises(UserError, match="11 of the 22 training records"):
        counter.update(np.array(["r#1: bad"]))


def test_a_tolerable_share_stays_tolerable_over_many_epochs() -> None:
    counter = BrokenRecords(epoch_size=100, max_broken_share=0.05)
    for _ in range(100):
        counter.update(np.array(["r#0: bad", *[""] * 49]))
    assert counter.broken == 100
    assert len(counter.first) == 10


def test_counts_survive_a_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    counter = BrokenRecords(epoch_size=10_000, max_broken_share=0.5)
    with caplog.at_level(logging.WARNING):
        counter.update(np.array(["r#1: bad", ""]))
    assert "unusable record, the next one takes its place: r#1: bad" in caplog.text
    restored = BrokenRecords(epoch_size=10_000, max_broken_share=0.5)
    restored.restore(counter.state())
    assert restored.state() == {"read": 3, "broken": 1, "first": ["r#1: bad"]}


def test_processes_judge_what_all_of_them_counted() -> None:
    """Each alone has 6 broken records, too few to stop; together they have 12, and both say so."""
    told: list[dict[str, Any]] = []
    counters = [BrokenRecords(1000, 0.005, told_by_all=lambda own: told) for _ in range(2)]
    for number, counter in enumerate(counters):
        counter.update(np.array([f"r#{number}: bad"] * 6))
        told.append(dict(counter._own))
        assert counter.broken == 0
    for counter in counters:
        with pytest.raises(UserError, match=r"12 of the 24 training records(.|\n)*r#0: bad\n(.|\n)*r#1: bad"):
            counter.share()
    restored = BrokenRecords(1000, 0.5, told_by_all=lambda own: [own, own])
    restored.restore(counters[1].state())
    restored.share()
    assert (restored.read, restored.broken, len(restored.first)) == (24, 12, 10)
