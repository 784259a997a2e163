"""benchmarks/search.py: it builds an index that can be searched, and measures both ways and a model's share."""

from pathlib import Path

import numpy as np
import psutil
import pytest
from absl import flags
from absl.testing import flagsaver
from programs import loaded_benchmark
from random_models import random_model


def test_figures_of_a_small_index(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    with loaded_benchmark("search") as module, flagsaver.flagsaver(pictures=300, width=16, batch_size=100, queries=3):
        built = module.measured("build", tmp_path / "index")
        assert (built["pictures"], built["recall_at_10"] >= 0.95) == (300, True)
        for part in ("exact", "approximate"):
            found = module.measured(part, tmp_path / "index")
            assert found["part"] == part
            assert all(found[name] > 0 for name in ("query_ms", "query_processor_ms", "open_seconds"))
            assert found["peak_mib"] > 0
    assert "pictures" not in flags.FLAGS


def test_times_of_a_tiny_model() -> None:
    with loaded_benchmark("search") as module:
        found = module.asked(random_model().config, candidates=20, repeats=1)
    assert (found["part"], found["candidates"]) == ("model", 20)
    assert all(found[f"{what}_seconds"] > 0 for what in ("picture", "sentence", "re_ranking"))


def test_the_peak_is_no_less_than_what_is_there_now() -> None:
    large = np.ones(2**25)
    resident = psutil.Process().memory_info().rss
    assert resident > large.nbytes
    with loaded_benchmark("search") as module:
        assert module.peak_mib() >= resident // 2**20
