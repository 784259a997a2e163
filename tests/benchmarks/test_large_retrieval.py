"""benchmarks/large_retrieval.py: what a child measures, and that top k is measured without the whole matrix."""

from collections.abc import Iterator
from types import ModuleType

import pytest
from encoder_cases import MODEL
from programs import loaded_benchmark

from r2d2_jax.evaluation import gallery, retrieval


@pytest.fixture(scope="module")
def large() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("large_retrieval") as module:
        yield module


def test_a_child_in_the_smallest_memory(large: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is done in blocks of a batch, each image twice, and the time of each part is told."""
    monkeypatch.setattr(large, "chosen_sizes", lambda: MODEL.config)
    replaced = [(gallery.Gallery, name) for name in ("__init__", "match", "_encode")] + [(retrieval, "nearest")]
    for owner, name in [*replaced, (gallery, "BATCHES_PER_BLOCK")]:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # what the child replaces comes back
    found = large.child(10, 20)
    assert found["forwards"] == {"images": 20, "texts": 3 * 20, "pairs": 10 * 20}
    assert found["again"] == {"images": 10, "texts": 2 * 20}
    assert found["plan"] == "8 images, 8 texts, ON_DEVICES"
    assert found["limit"] == sum(found["needs"].values()) + 8 * found["all tokens"] // 10 - 8 * 7 * 64 * 4
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["peak"] >= found["loaded"] > 0
    assert found["recall"][0]["mean"] < 100


def test_top_k_of_random_embeddings(large: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    large.measure_nearest(30, 40)
    lines = capsys.readouterr().out.splitlines()
    assert "queries x 40 candidates, the best 40 of each" in lines[0]
    assert lines[1].startswith("t2i: 40 queries x 30 candidates, the best 30 of each")


def test_what_a_large_gallery_would_need(
    large: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is allocated: 100,000 images; texts pass once more for each block of 8 images."""
    monkeypatch.setattr(large, "chosen_sizes", lambda: MODEL.config)
    large.print_plan(100_000, 10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("100000 x 10, GiB: program 1.00, embeddings 0.01, ")
    pairs = 100_000 * 10 + 10 * 128
    assert lines[1].endswith(f"at most {pairs} pairs, and again 100000 images and {100_000 // 8 * 10} texts")
