"""benchmarks/search.py: it builds an index that can be searched, and measures both ways."""

from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from programs import loaded_benchmark


def test_figures_of_a_small_index(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    with loaded_benchmark("search") as module, flagsaver.flagsaver(pictures=300, width=16, batch_size=100, queries=3):
        built = module.measured("build", tmp_path / "index")
        assert (built["pictures"], built["recall_at_10"] >= 0.95) == (300, True)
        for part in ("exact", "approximate"):
            found = module.measured(part, tmp_path / "index")
            assert found["part"] == part
            assert found["query_ms"] > 0
            assert found["peak_mib"] > 0
    assert "pictures" not in flags.FLAGS
