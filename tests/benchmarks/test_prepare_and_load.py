"""benchmarks/prepare_and_load.py: its commands run, and it sees what differs and what grows."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from absl.testing import flagsaver
from programs import loaded_benchmark

from r2d2_jax.data.records import RecordSource


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("prepare_and_load") as module:
        yield module


def test_what_it_runs(benchmark: ModuleType, tmp_path: Path) -> None:
    with flagsaver.flagsaver(pairs=100):
        benchmark._draw(tmp_path / "100", 100)
        subprocess.run(benchmark._command(tmp_path, 100, 1, tmp_path / "out"), check=True, capture_output=True)
        assert len(RecordSource(tmp_path / "out", "train")) == 100
        assert len(list(tmp_path.glob("out/json_lines/1.0.0/*train*"))) == benchmark.SHARDS
        assert benchmark._loaded(tmp_path / "out", 100) > 50 * 1024


def test_differences_are_seen(benchmark: ModuleType, tmp_path: Path) -> None:
    for folder, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "x" / "y").write_text(text)
    (tmp_path / "c" / "z").write_text("more")
    assert benchmark._differing(tmp_path / "a", tmp_path / "b") == []
    assert benchmark._differing(tmp_path / "a", tmp_path / "c") == ["x/y", "z"]


def test_growth_is_seen(benchmark: ModuleType) -> None:
    assert list(benchmark._grown("loading", 1000, 1050)) == []
    assert list(benchmark._grown("loading", 1000, 1051)) == ["loading takes 1.051 times the memory"]
