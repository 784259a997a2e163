"""Which batch and which rematerialisation fit the memory of a chip, in few compilations."""

from collections.abc import Callable, Sequence

from r2d2_jax.config.model import REMAT_WORDS, ModelConfig
from r2d2_jax.errors import UserError
from r2d2_jax.planning.chips import GIB
from r2d2_jax.planning.estimate import Estimate, Usage

# Pairs of a chip that are tried: powers of two, and what lies in the middle between them (our decision).
SIZES = tuple(sorted({2**power for power in range(13)} | {3 * 2**power for power in range(12)}))
# The next size is not compiled where the line through two compilations says that it needs so much more than there is.
SURELY_TOO_MUCH = 1.05


def rematerialisations(model: ModelConfig) -> list[str]:
    """What is tried for a model, as `ModelConfig.remat` has it, the cheapest in time first.

    Where the image tower is trained, recomputing the cross encoders alone whole lies halfway between the words for all
    stacks. Where it is frozen, the cross encoders have nearly all that is stored, and nothing lies between.
    """
    words = list(REMAT_WORDS)
    if model.cross.layers and not model.freeze_image_tower:
        words.insert(words.index("all"), "image:products,text:products,cross:all")
    return words


def cheapest(compiled: Callable[[str], Estimate], remats: Sequence[str], batch_size: int) -> Estimate:
    """The first rematerialisation with which a batch fits.

    Args:
        compiled: the step of that batch with a rematerialisation.
        remats: as `ModelConfig.remat`, the cheapest in time first.
        batch_size: the global batch, for the message.

    Raises:
        UserError: it fits with none.
    """
    tried: list[Estimate] = []
    for remat in remats:
        tried.append(compiled(remat))
        if tried[-1].usage.fits:
            return tried[-1]
    raise _none_fits(f"{batch_size} pairs", tried)


def largest(
    compiled: Callable[[str, int], Estimate], remats: Sequence[str], batches: Sequence[int], start: int
) -> list[Estimate]:
    """For each rematerialisation the largest batch that fits, the largest of all first; of equal ones the cheapest.

    Args:
        compiled: the step with a rematerialisation and a global batch.
        remats: as `ModelConfig.remat`, the cheapest in time first.
        batches: global batches to choose from, ascending.
        start: the global batch that is tried first, or the next smaller one.

    Raises:
        UserError: not even the smallest batch fits with any.
    """
    found: list[Estimate] = []
    tried: list[Estimate] = []
    for remat in remats:

        def of_batch(batch_size: int, remat: str = remat) -> Estimate:
            tried.append(compiled(remat, batch_size))
            return tried[-1]

        first = 2 * found[-1].batch_size if found else start  # less is kept than before
        if (best := largest_of(batches, of_batch, first)) is not None:
            found.append(best)
    if not found:
        raise _none_fits(
            f"{batches[0]} pairs, the smallest,", [made for made in tried if made.batch_size == batches[0]]
        )
    return sorted(found, key=lambda made: -made.batch_size)


def largest_of(batches: Sequence[int], compiled: Callable[[int], Estimate], start: int) -> Estimate | None:
    """The step of the largest batch that fits; None if the smallest does not.

    What is needed grows with the batch, nearly along a line.

    Args:
        batches: ascending.
        compiled: the step of a batch, which is compiled as seldom as possible.
        start: the batch that is tried first, or the next smaller one.
    """
    made: dict[int, Estimate] = {}
    size = max((each for each in batches if each <= start), default=batches[0])
    while True:
        made[size] = compiled(size)
        fitting = max((each for each in made if made[each].usage.fits), default=0)
        failing = min((each for each in made if not made[each].usage.fits), default=batches[-1] + 1)
        between = [each for each in batches if fitting < each < failing]
        usage = {each: found.usage for each, found in made.items()}
        if not between or (fitting and len(made) > 1 and _expected(usage, between[0]) > SURELY_TOO_MUCH):
            return made.get(fitting)
        likely = (each for each in between if _expected(usage, each) <= 1)
        size = max(likely, default=between[0])


def _expected(usage: dict[int, Usage], size: int) -> float:
    """Share of the memory that a size needs, on the line through the two known batches that come closest to all of it.

    What does not grow with the size is known: the state.
    """
    limit = next(iter(usage.values())).limit
    assert limit is not None
    points = {each: found.needed / limit for each, found in usage.items()}
    if len(points) == 1:
        parts = next(iter(usage.values())).parts
        points[0] = sum(bytes_ for name, bytes_ in parts.items() if name != "batch") / limit
    (left, low), (right, high) = sorted(sorted(points.items(), key=lambda point: abs(point[1] - 1))[:2])
    return low + (high - low) * (size - left) / (right - left)


def _none_fits(batch: str, tried: Sequence[Estimate]) -> UserError:
    usage = [f"{made.usage.needed / GIB:.2f} GiB with --remat={made.remat}" for made in tried]
    limit = tried[0].usage.limit or 0.0
    return UserError(
        f"a batch of {batch} fits with no rematerialisation: of {limit / GIB:.2f} GiB a chip it needs "
        f"{', '.join(usage)}; take more chips, a smaller batch, or more of --config.mesh.fsdp"
    )
