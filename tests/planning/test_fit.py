"""The largest batch and the cheapest rematerialisation that fit, in few compilations."""

import dataclasses
from collections.abc import Callable

import pytest
from small_model import NO_CROSS, small_config

from r2d2_jax.errors import UserError
from r2d2_jax.planning.chips import GIB
from r2d2_jax.planning.estimate import Estimate, Usage
from r2d2_jax.planning.fit import SIZES, cheapest, largest, largest_of, rematerialisations
from r2d2_jax.planning.report import choice

LIMIT, STATE = 16 * GIB, 2 * GIB
CHIPS = 4
BATCHES = [size * CHIPS for size in SIZES]
# GiB that a pair of each chip needs, and what a compiler adds that nobody expects.
NEEDS = {"none": 0.5, "products": 0.2, "all": 0.05}


def made(remat: str, batch_size: int, surprise: float = 0.0) -> Estimate:
    needed = STATE + NEEDS[remat] * GIB * batch_size / CHIPS + surprise * GIB
    usage = Usage({"parameters": STATE, "batch": 7}, needed, LIMIT)
    return Estimate(remat, batch_size, {"data": CHIPS}, "TPU", None, usage, None, 0.0)


def asked(surprise: Callable[[int], float] = lambda size: 0.0) -> tuple[Callable[[int], Estimate], list[int]]:
    """The step of a batch, and which pairs of a chip were asked for."""
    sizes: list[int] = []

    def compiled(batch_size: int) -> Estimate:
        sizes.append(batch_size // CHIPS)
        return made("products", batch_size, surprise(batch_size // CHIPS))

    return compiled, sizes


@pytest.mark.parametrize("start", [1, 32, 48, 64, 4096])
def test_finds_the_largest_size_in_three_compilations(start: int) -> None:
    """70 pairs would fit: 64 do and 96 do not, which the line through two points tells without compiling it."""
    compiled, sizes = asked()
    found = largest_of(BATCHES, compiled, start * CHIPS)
    assert found is not None
    assert found.batch_size == 64 * CHIPS
    assert len(sizes) <= 3


@pytest.mark.parametrize(
    "surprise", [lambda size: 3.0 if size > 40 else 0.0, lambda size: -0.12 * size, lambda size: 6.0, lambda size: 14.0]
)
def test_memory_that_is_no_line(surprise: Callable[[int], float]) -> None:
    """Whatever jumps there are, as long as more pairs need more memory."""
    compiled, _ = asked(surprise)
    found = largest_of(BATCHES, compiled, 16 * CHIPS)
    fitting = [size for size in SIZES if made("products", size * CHIPS, surprise(size)).usage.fits]
    assert (found.batch_size // CHIPS if found else None) == (max(fitting) if fitting else None)


def test_of_each_rematerialisation_the_largest_batch_the_largest_first() -> None:
    found = largest(made, ["none", "products", "all"], BATCHES, start=128)
    assert [(each.remat, each.batch_size // CHIPS) for each in found] == [("all", 256), ("products", 64), ("none", 24)]


def test_no_batch_is_larger_than_allowed() -> None:
    found = largest(made, ["none", "all"], [20, 40], start=1)
    assert [(each.remat, each.batch_size) for each in found] == [("none", 40), ("all", 40)]


def test_of_equal_batches_the_cheapest_comes_first() -> None:
    found = largest(lambda remat, pairs: made("all", pairs), ["none", "all"], BATCHES, start=CHIPS)
    assert len({each.batch_size for each in found}) == 1


def test_what_is_tried() -> None:
    """Between the words for all stacks one more, where both image tower and cross encoders are trained."""
    mixed = "image:products,text:products,cross:all"
    for frozen, change, expected in (
        (True, {}, ["none", "products", "all"]),
        (False, {}, ["none", "products", mixed, "all"]),
        (False, NO_CROSS, ["none", "products", "all"]),
    ):
        config = small_config(change, {"model": {"freeze_image_tower": frozen}})
        assert rematerialisations(config.model) == expected
    found = largest(lambda remat, pairs: made("all", pairs, 0.0), [mixed], BATCHES, start=CHIPS)
    table = choice([dataclasses.replace(found[0], remat=remat) for remat in (mixed, "all")]).splitlines()
    assert len({line.index(str(found[0].batch_size)) for line in table[1:]}) == 1
    assert len({len(line) for line in table}) == 1


def test_the_first_rematerialisation_with_which_a_batch_fits() -> None:
    tried: list[str] = []

    def compiled(remat: str) -> Estimate:
        tried.append(remat)
        return made(remat, 50 * CHIPS)

    assert cheapest(compiled, ["none", "products", "all"], 50 * CHIPS).remat == "products"
    assert tried == ["none", "products"]


def test_a_batch_that_no_rematerialisation_fits() -> None:
    message = (
        r"a batch of 4000 pairs fits with no rematerialisation: of 16.00 GiB a chip it needs 502.00 GiB with "
        r"--remat=none, 52.00 GiB with --remat=all; take more chips"
    )
    with pytest.raises(UserError, match=message):
        cheapest(lambda remat: made(remat, 4000), ["none", "all"], 4000)
    with pytest.raises(UserError, match=r"a batch of 4 pairs, the smallest, fits with no rematerialisation: .*22.50"):
        largest(lambda remat, pairs: made(remat, pairs, surprise=20.0), ["none"], BATCHES, start=64)
