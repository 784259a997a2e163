"""How much a figure depends on which images a set happens to have: bootstrap intervals over images."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from r2d2_jax.evaluation.ranks import hits_of, with_means

DRAWS, SEED = 1000, 0  # our decision
Interval = tuple[float, float]


def image_weights(count: int) -> Iterator[np.ndarray]:
    """How often each of `count` images is drawn, int [count], in each of the resamples, which are always the same."""
    rng = np.random.default_rng(SEED)
    for _ in range(DRAWS):
        yield np.bincount(rng.integers(count, size=count), minlength=count)


def interval(drawn: Sequence[float] | np.ndarray) -> Interval:
    """The middle 95 % of what the resamples give."""
    low, high = np.percentile(drawn, (2.5, 97.5)).tolist()
    return low, high


def recall_intervals(ranks: Mapping[str, np.ndarray], image: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """95 % intervals of everything that `recalls_of` gives, in per cent.

    Images are drawn with replacement, as many as there are, and each brings all queries that belong to it: captions of
    one image are not independent of each other. A draw is a weight for each image, so nothing is ranked again, and the
    candidates stay what they are.

    Args:
        ranks: int [q] of each direction's queries.
        image: int [q], the image that each query goes with: of a text with several images the first.
    """
    clusters = np.unique(np.concatenate(list(image.values())), return_inverse=True)[1]
    of_query = dict(zip(image, np.split(clusters, np.cumsum([len(each) for each in image.values()])[:-1]), strict=True))
    count, hits = int(clusters.max()) + 1, hits_of(ranks)
    totals = {name: np.bincount(of_query[name[:3]], hit, count) for name, hit in hits.items()}
    queries = {direction: np.bincount(of_query[direction], minlength=count) for direction in ranks}
    sums = np.stack([*totals.values(), *queries.values()], axis=1).astype(np.float64)
    drawn = []
    for weights in image_weights(count):
        found = dict(zip([*totals, *queries], weights @ sums, strict=True))
        if all(found[direction] for direction in ranks):  # a draw without a query of a direction says nothing of it
            drawn.append(with_means({name: 100 * found[name] / found[name[:3]] for name in totals}))
    return {name: interval([draw[name] for draw in drawn]) for name in drawn[0]}
