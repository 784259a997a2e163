"""benchmarks/attention_on_objects.py: its targets, its ratios and its table; no model is trained here."""

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from programs import loaded_benchmark

from r2d2_jax.evaluation.attention import AttentionMap


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with loaded_benchmark("attention_on_objects") as module:
        yield module


def test_targets_are_the_objects_that_the_caption_names(benchmark: ModuleType) -> None:
    found = benchmark.targets(48, 10)
    assert len(found) == 20
    assert len({each.picture.tobytes() for each in found}) == 10
    for each in found:
        assert each.text[each.entity.start : each.entity.end] == each.entity.text
        inside = each.picture[each.mask > 0.99].astype(int)
        assert np.ptp(inside, axis=0).max() <= 2  # an object has one colour
        reddish = inside[:, 0].min() > inside[:, 1:].max() + 100
        assert reddish == ("红" in each.entity.text)


def test_ratios_of_maps_that_know_nothing_and_everything(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = benchmark.targets(48, 5)
    maps: list[np.ndarray] = [np.full((4, 4), 1 / 16, np.float32)] * 10
    monkeypatch.setattr(
        benchmark, "attention_maps", lambda *_: [AttentionMap(each.entity, patches, 0.0) for each, patches in both()]
    )
    both = lambda: zip(found, maps, strict=True)  # noqa: E731
    np.testing.assert_allclose(benchmark.ratios(None, found), 1, rtol=1e-5)
    maps = [each.mask for each in found]
    ratios = benchmark.ratios(None, found)
    assert min(ratios * [each.mask.mean() for each in found]) > 0.8  # all inside, but for the pixels of edges
    maps = [np.roll(each.mask, 24, axis=(0, 1)) for each in found]
    assert max(benchmark.ratios(None, found)) < 0.5


def test_the_table_says_how_maps_are_spread(benchmark: ModuleType) -> None:
    words = benchmark.summary(np.array([0.0, 1.0, 2.0, 3.0])).split()
    assert [words[place] for place in (0, 2, 4, 6)] == ["1.50", "1.50", "50.0", "25.0"]
