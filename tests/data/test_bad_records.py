"""When there are too many unusable records, in one process and in several."""

import logging
from typing import Any

import numpy as np
import pytest

from r2d2_jax.data.bad_records import UnusableRecords
from r2d2_jax.errors import UserError


def test_broken_share_is_judged_after_an_epoch() -> None:
    counter = UnusableRecords(epoch_size=50, max_broken_share=0.1)
    counter.update(np.array(["", "r#1: bad", "", ""]))
    assert (counter.read, counter.unusable, counter.first) == (5, 1, ["r#1: bad"])
    counter.update(np.array([""] * 45))
    counter.update(np.array(["r#2: bad\nr#3: worse", *[""] * 3]))
    with pytest.raises(
        UserError,
        match=r"10 of the 64 training records read are unusable, more than "
        r"data.max_broken_share = 0.1 allows; (.|\n)*r#1: bad\nr#2: bad\nr#3: worse",
    ):
        counter.update(np.array(["\n".join(["r#4: bad"] * 7)]))


def read_all(share: float, max_broken_share: float, seed: int, epochs: int = 3) -> int:
    """Reads 5,000 records of which a share is unusable, each epoch in another order; returns how many were read."""
    counter = UnusableRecords(5000, max_broken_share)
    lines = np.array(["r: bad"] * round(5000 * share) + [""] * round(5000 * (1 - share)))
    rng = np.random.default_rng(seed)
    for batch in np.concatenate([rng.permutation(lines) for _ in range(epochs)]).reshape(-1, 50):
        counter.update(batch)
    return counter.read


@pytest.mark.parametrize("share", [0.005, 0.009, 0.01])
def test_a_share_within_the_limit_never_stops_by_chance(share: float) -> None:
    """Though in some part of some epoch there are always more than in the whole."""
    for seed in range(30):
        assert read_all(share, 0.01, seed) == 15_000 + 3 * round(5000 * share)


@pytest.mark.parametrize("share", [0.011, 0.02, 0.5])
def test_a_share_above_the_limit_stops_within_an_epoch(share: float) -> None:
    for seed in range(10):
        with pytest.raises(UserError, match="more than data.max_broken_share = 0.01 allows"):
            read_all(share, 0.01, seed, epochs=1)


def test_broken_share_that_cannot_recover_stops_at_once() -> None:
    counter = UnusableRecords(epoch_size=500, max_broken_share=0.01)
    counter.update(np.array(["r#0: bad"] * 10))
    with pytest.raises(UserError, match="11 of the 22 training records"):
        counter.update(np.array(["r#1: bad"]))


def test_a_tolerable_share_stays_tolerable_over_many_epochs() -> None:
    counter = UnusableRecords(epoch_size=100, max_broken_share=0.05)
    for _ in range(100):
        counter.update(np.array(["r#0: bad", *[""] * 49]))
    assert counter.unusable == 100
    assert len(counter.first) == 10


def test_counts_survive_a_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    counter = UnusableRecords(epoch_size=10_000, max_broken_share=0.5)
    with caplog.at_level(logging.WARNING):
        counter.update(np.array(["r#1: bad", ""]))
    assert "unusable record, the next one takes its place: r#1: bad" in caplog.text
    restored = UnusableRecords(epoch_size=10_000, max_broken_share=0.5)
    restored.restore(counter.state())
    assert restored.state() == {"read": 3, "broken": 1, "first": ["r#1: bad"]}


def test_processes_judge_what_all_of_them_counted() -> None:
    """Each alone has 6 unusable records, too few to stop; together they have 12, and both say so."""
    told: list[dict[str, Any]] = []
    counters = [UnusableRecords(1000, 0.005, gather_json=lambda own: told) for _ in range(2)]
    for number, counter in enumerate(counters):
        counter.update(np.array([f"r#{number}: bad"] * 6))
        told.append(dict(counter._own))
        assert counter.unusable == 0
    for counter in counters:
        with pytest.raises(UserError, match=r"12 of the 24 training records(.|\n)*r#0: bad\n(.|\n)*r#1: bad"):
            counter.share()
    restored = UnusableRecords(1000, 0.5, gather_json=lambda own: [own, own])
    restored.restore(counters[1].state())
    restored.share()
    assert (restored.read, restored.unusable, len(restored.first)) == (24, 12, 10)
