"""The table of chips, and the time of a step worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.planning.chips import CHIPS, Chip, chip_of, named_chip, other_than
from r2d2_jax.planning.roofline import LINKS, MATRIX, MEMORY, assumptions, crossed, mean_hops, roofline
from r2d2_jax.planning.traffic import HARD_NEGATIVES, Collective
from r2d2_jax.planning.work import Operation

SLOW = Chip("slow", (), memory=100, rate=10, exact_rate=2, bandwidth=4, links=5)


def test_every_chip_is_in_the_table_once_with_sane_numbers() -> None:
    assert [chip.name for chip in CHIPS] == ["v4", "v5e", "v5p", "v6e", "A100", "H100", "H200"]
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    for chip in CHIPS:
        assert 15e9 < chip.memory < 200e9
        assert chip.exact_rate < chip.rate / 4  # exact float32 products are dear everywhere
        assert 100 < chip.rate / chip.bandwidth < 1000  # products for each byte of memory
        assert 1 < chip.bandwidth / chip.links < 15


def test_a_chip_by_what_jax_calls_it_and_by_name() -> None:
    of = lambda platform, kind: chip_of(SimpleNamespace(platform=platform, device_kind=kind))  # noqa: E731
    assert of("cpu", "cpu") is None
    assert of("tpu", "TPU v5 lite") == named_chip("V5E")
    with pytest.raises(UserError, match=r"^TPU v2 is a chip that is in no table; plan for one of v4, v5e, .*H200, or"):
        of("tpu", "TPU v2")
    with pytest.raises(UserError, match=r"^--chip=TX: there is no such chip in the table; it has v4, v5e"):
        named_chip("TX")


def test_what_goes_to_other_slices_takes_the_rate_of_the_network() -> None:
    sent = [Collective("all-to-all between slices", 1, 4, 100, "", ""), Collective("all-to-all", 1, 4, 100, "", "")]
    assert roofline([], sent, SLOW).links == 75 / 5 + 75 / 5
    assert roofline([], sent, replace(SLOW, network=0.5)).links == 75 / 0.5 + 75 / 5


def test_what_a_program_was_compiled_for_where_it_is_no_such_chip() -> None:
    of = lambda platform, kind: SimpleNamespace(platform=platform, device_kind=kind)  # noqa: E731
    assert other_than(named_chip("v5e"), of("tpu", "TPU v5 lite")) == ""
    assert other_than(named_chip("H100"), of("tpu", "TPU v5 lite")) == "TPU v5 lite"
    assert other_than(named_chip("v5e"), of("cpu", "cpu")) == "imitated CPU devices"


def test_an_operation_takes_the_longer_of_its_products_and_its_traffic() -> None:
    """100 products at 10 operations/s: 20 s; twice 40 bytes at 4/s: 20 s; 3 exact ones: 3 s beside 1 s of traffic."""
    made = [
        Operation("fusion.1", "a", 1, 100, 0, 8),
        Operation("fusion.2", "b", 2, 0, 0, 40),
        Operation("fusion.3", "c", 1, 0, 3, 4),
    ]
    gather = Collective("all-gather", 3, 5, 50, "", "")
    time = roofline(made, [gather], SLOW)
    assert (time.matrix, time.memory) == (20 + 3, 2 + 20 + 1)
    assert time.chip == 20 + 20 + 3
    assert time.links == 3 * 40 / 5
    assert time.step == time.chip + time.links == 67


@pytest.mark.parametrize(
    ("operation", "sent", "bound"),
    [((9, 0, 4), 1, MATRIX), ((1, 0, 400), 1, MEMORY), ((1, 0, 4), 1000, LINKS)],
)
def test_what_bounds_a_step(operation: tuple[float, float, float], sent: float, bound: str) -> None:
    traffic = [Collective("collective-permute", 1, 2, sent, "", "")]
    assert roofline([Operation("fusion", "a", 1, *operation)], traffic, SLOW).bound == bound


def test_an_exchange_crosses_the_mean_distance_of_a_torus() -> None:
    """Around a ring of four the others are 1, 2 and 1 away; on a torus of both kinds distances add up."""
    assert mean_hops((4,)) == 1
    assert mean_hops((4, 16)) == 1 + 4
    exchange = Collective("all-to-all", 1, 64, 640, HARD_NEGATIVES, "")
    assert crossed(exchange, ()) == 630
    assert crossed(exchange, (4, 16)) == 5 * 640
    assert crossed(Collective("all-gather", 1, 64, 640, "", ""), (4, 16)) == 630


def test_assumptions_name_what_they_depend_on() -> None:
    plain = assumptions(named_chip("v5e"), 256, torus=False)
    whole = assumptions(named_chip("H100"), 16, torus=True, other="TPU v4")
    assert len(plain) == 3
    assert len(whole) == 6
    assert any(
        "4 slices carries 3.125 GB/s" in each for each in assumptions(named_chip("v5e"), 1024, torus=True, slices=4)
    )
    assert any("4 slices are as fast" in each for each in assumptions(named_chip("v4"), 1024, torus=True, slices=4))
    assert any("100 %" in each for each in plain)
    assert any("node of 8 chips" in each for each in whole)
    assert any("compiles for TPU v4, whose" in each for each in whole)
    assert len(assumptions(named_chip("H100"), 8, torus=False)) == 3
