"""How long a step takes at least on a kind of chip, and what bounds it: matrix rate, memory bandwidth, or links."""

from collections.abc import Sequence
from dataclasses import dataclass

from r2d2_jax.planning.chips import Chip
from r2d2_jax.planning.traffic import BETWEEN_SLICES, Collective
from r2d2_jax.planning.work import Operation

MATRIX, MEMORY, LINKS = "matrix rate", "memory bandwidth", "links"
ASSUMPTIONS = (
    "every rate is reached to 100 %; nothing else takes time",
    "an operation takes what is longer of its products and its memory traffic; operations follow each other",
    "collectives are not overlapped with computation; each chip sends over all its links at once",
)
TORUS = "links form a torus; rows of an all-to-all cross the mean distance in it"
NODE = "links between all chips are as fast as those within a node of {} chips"
SLICES = "links between the {} slices are as fast as those within one, which the network between them is not"
NETWORK = "the network between the {} slices carries {:g} GB/s of each chip"
OTHER = "the program is what XLA compiles for {}, whose fusions and layouts are not the chip's"


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step.

    matrix, memory, links: what products, memory traffic and collectives take, each by itself.
    chip: what a chip computes for, each operation as long as the slower of its products and its traffic.
    """

    matrix: float
    memory: float
    links: float
    chip: float

    @property
    def step(self) -> float:
        """Collectives are not overlapped."""
        return self.chip + self.links

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {MATRIX: self.matrix, MEMORY: self.memory, LINKS: self.links}
        return max(parts, key=lambda name: parts[name])


def roofline(
    operations: Sequence[Operation], traffic: Sequence[Collective], chip: Chip, torus: Sequence[int] = ()
) -> Roofline:
    """The least time of a step.

    Args:
        operations: of the program of one chip.
        traffic: its collectives.
        chip: the kind of chip.
        torus: chips along each axis of a torus of links; () where any chip reaches any other directly.
    """
    matrix = memory = computing = 0.0
    for each in operations:
        products = 2 * (each.products / chip.rate + each.exact_products / chip.exact_rate)
        moving = each.bytes / chip.bandwidth
        matrix += each.times * products
        memory += each.times * moving
        computing += each.times * max(products, moving)
    network = chip.network or chip.links
    links = sum(
        each.times * crossed(each, torus) / (network if each.kind.endswith(BETWEEN_SLICES) else chip.links)
        for each in traffic
    )
    return Roofline(matrix, memory, links, computing)


def crossed(collective: Collective, torus: Sequence[int]) -> float:
    """Bytes that one run of a collective puts on the links of each chip, those passed on for others included.

    A ring sends to neighbours alone. What an all-to-all sends to every chip crosses the mean distance to it.
    """
    if torus and collective.kind.endswith("all-to-all"):
        return max(collective.sent, collective.bytes * mean_hops(torus))
    return collective.sent


def mean_hops(torus: Sequence[int]) -> float:
    """Mean distance of a chip of a torus to all chips, itself included."""
    return sum(sum(min(step, size - step) for step in range(size)) / size for size in torus)


def assumptions(chip: Chip, chips: int, *, torus: bool, other: str = "", slices: int = 1) -> list[str]:
    """What the time of a plan rests on, a sentence each.

    Args:
        chip: whose rates are taken.
        chips: how many there are.
        torus: whether their links form one.
        other: what the program was compiled for, where that is not such a chip.
        slices: how many are joined by the network.
    """
    more = [TORUS] if torus else []
    more += [NODE.format(chip.node)] if chip.node and chips > chip.node else []
    if slices > 1:
        more += [NETWORK.format(slices, chip.network / 1e9) if chip.network else SLICES.format(slices)]
    return [*ASSUMPTIONS, *more, *([OTHER.format(other)] if other else [])]
