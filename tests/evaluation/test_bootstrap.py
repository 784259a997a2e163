"""Bootstrap intervals against resamples that are written out, query by query."""

import numpy as np
import pytest

from r2d2_jax.evaluation import bootstrap
from r2d2_jax.evaluation.bootstrap import DRAWS, SEED, recall_intervals
from r2d2_jax.evaluation.ranks import recalls_of


def test_intervals_are_those_of_written_out_resamples() -> None:
    """Images 2 and 5 have no query; each image that is drawn brings its own queries of both directions."""
    rng = np.random.default_rng(3)
    image = {"i2t": np.array([0, 1, 3, 4, 6]), "t2i": np.array([0, 0, 0, 1, 3, 3, 4, 6, 6])}
    ranks = {way: rng.integers(0, 12, len(places)) for way, places in image.items()}
    asking, draws = np.array([0, 1, 3, 4, 6]), []
    resampling = np.random.default_rng(SEED)
    for _ in range(DRAWS):
        drawn = asking[resampling.integers(5, size=5)]
        again = {way: [rank for one in drawn for rank in ranks[way][image[way] == one]] for way in ranks}
        draws.append(recalls_of({way: np.array(values) for way, values in again.items()}))
    found = recall_intervals(ranks, image)
    assert found.keys() == recalls_of(ranks).keys()
    for name, interval in found.items():
        assert interval == pytest.approx(np.percentile([draw[name] for draw in draws], [2.5, 97.5])), name


def test_the_interval_is_that_of_the_binomial_where_images_are_independent() -> None:
    hits = np.random.default_rng(0).random(400) < 0.3
    ranks, places = np.where(hits, 0, 99), np.arange(400)
    low, high = recall_intervals({"t2i": ranks}, {"t2i": places})["t2i_r1"]
    deviation = 100 * np.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert (low, high) == pytest.approx(100 * hits.mean() + 1.96 * deviation * np.array([-1, 1]), abs=0.6)


def test_captions_of_one_image_are_drawn_together() -> None:
    """Five equal captions each: the interval is as wide as that of one caption, not narrower by the root of five."""
    ranks, places = np.where(np.arange(100) < 40, 0, 99), np.arange(100)
    one = recall_intervals({"t2i": ranks}, {"t2i": places})
    several = recall_intervals({"t2i": np.repeat(ranks, 5)}, {"t2i": np.repeat(places, 5)})
    assert several["t2i_r1"] == pytest.approx(one["t2i_r1"])


def test_the_same_intervals_every_time() -> None:
    ranks, places = np.random.default_rng(0).integers(0, 20, 50), np.arange(50)
    assert recall_intervals({"i2t": ranks}, {"i2t": places}) == recall_intervals({"i2t": ranks}, {"i2t": places})


def test_a_draw_without_a_query_of_a_direction_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only text goes with image 0, which one draw in four does not have."""
    monkeypatch.setattr(bootstrap, "DRAWS", 50)
    found = recall_intervals({"i2t": np.array([0, 0]), "t2i": np.array([3])}, {"i2t": np.arange(2), "t2i": np.zeros(1)})
    assert found["t2i_r5"] == found["i2t_r1"] == (100.0, 100.0)
    assert found["t2i_r1"] == (0.0, 0.0)
