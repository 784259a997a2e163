"""How much a recall depends on which images a set happens to have: bootstrap intervals over images."""

from collections.abc import Mapping

import numpy as np

from r2d2_jax.evaluation.ranks import hits_of, with_means

DRAWS, SEED = 1000, 0
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval


def recall_intervals(
    ranks: Mapping[str, np.ndarray], image: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of everything that `recalls_of` gives, in per cent.

    Images are drawn with replacement, as many as there are, and each brings all queries that belong to it: captions of
    one image are not independent of each other. A draw is a weight for each image, so nothing is ranked again, and the
    candidates stay what they are. 1,000 draws with a fixed seed (our decision).

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
    rng, drawn = np.random.default_rng(SEED), []
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(count, size=count), minlength=count)
        found = dict(zip([*totals, *queries], weights @ sums, strict=True))
        if all(found[direction] for direction in ranks):  # a draw without a query of a direction says nothing of it
            drawn.append(with_means({name: 100 * found[name] / found[name[:3]] for name in totals}))
    bounds = {name: np.percentile([draw[name] for draw in drawn], LEVEL) for name in drawn[0]}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
