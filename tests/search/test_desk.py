"""One question after the other: who waits, who has left, and what ends with the server."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from r2d2_jax.evaluation.progress import Progress
from r2d2_jax.search.desk import Gone, Turns


class Asking:
    """A request, as far as a turn looks at it."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone

    async def is_disconnected(self) -> bool:
        return self.gone


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns()
    yield turns
    turns.stop()


def test_in_the_order_of_asking_and_one_at_a_time(turns: Turns) -> None:
    done: list[int] = []
    at_work: set[int] = set()

    def work(number: int) -> int:
        at_work.add(number)
        assert at_work == {number}
        time.sleep(0.002)
        at_work.remove(number)
        done.append(number)
        return 2 * number

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(turns.compute(Asking(), lambda number=n: work(number)) for n in range(20)))

    assert asyncio.run(all_at_once()) == list(range(0, 40, 2))
    assert done == list(range(20))


def test_who_has_left_is_not_computed_for(turns: Turns) -> None:
    with pytest.raises(Gone):
        asyncio.run(turns.compute(Asking(gone=True), lambda: pytest.fail("nobody waits")))


def test_an_error_ends_one_turn_alone(turns: Turns) -> None:
    def broken() -> None:
        raise ValueError("a bug")

    async def both() -> int:
        with pytest.raises(ValueError, match="a bug"):
            await turns.compute(Asking(), broken)
        return await turns.compute(Asking(), lambda: 1)

    assert asyncio.run(both()) == 1


def test_what_is_computed_when_the_server_ends_stops_at_the_next_batch() -> None:
    begun = threading.Event()

    def endless() -> None:
        for _ in Progress("pictures", 10**9).over(itertools.repeat([0])):
            begun.set()
            time.sleep(0.001)

    async def stopped() -> None:
        turns = Turns()
        computing = asyncio.create_task(turns.compute(Asking(), endless))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        turns.stop()
        with pytest.raises(Gone):
            await computing

    asyncio.run(stopped())
