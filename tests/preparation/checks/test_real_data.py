"""What is found in real data is what their description says."""

import functools
from pathlib import Path

import pytest
from small_check import settings

from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.report import Range, Report
from r2d2_jax.preparation.checks.sources import CorpusSource
from r2d2_jax.preparation.corpora.json_lines import JsonLines


def real(shared: Path, name: str) -> Report:
    folder = shared / "data" / name
    corpus = JsonLines(str(folder / "images"), str(folder / "captions.jsonl"))
    at_224 = settings(shared / "tokenizer" / "vocab.txt", text_length=64, image_size=224)
    return check(functools.partial(CorpusSource, corpus), name, at_224)


def test_howtocook(shared: Path) -> None:
    report = real(shared, "howtocook_zh")
    assert {name: split.usable for name, split in report.splits.items()} == {"train": 269, "validation": 38, "test": 35}
    assert sum(split.captions.count for split in report.splits.values()) == 732
    for split in report.splits.values():
        assert split.captions.per_image
        assert split.captions.per_image.max == 3
    assert report.status == 0


def test_flickr8k(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without decoding its 7,000 images, which takes most of the time and tells nothing new."""
    monkeypatch.setattr("r2d2_jax.preparation.checks.images.verify_image", lambda encoded: None)
    report = real(shared, "flickr8k_cn")
    assert {name: split.usable for name, split in report.splits.items()} == {"train": 6000, "validation": 1000}
    for split in report.splits.values():
        assert split.images.width == split.images.height == Range(224, 224, 224, 224)
        assert split.captions.per_image == Range(5, 5, 5, 5)
        assert split.captions.characters
        assert split.captions.characters.median == 9
    repeated = sum(split.captions.repeated for split in report.splits.values())
    assert 0.2 < repeated / 35_000 < 0.35
    assert report.status == 0
