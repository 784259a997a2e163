"""Texts that several images have by their text_id are counted apart from captions of equal characters."""

import dataclasses
from pathlib import Path

import numpy as np
from small_check import checked
from small_data import encode, example

from r2d2_jax.preparation.checks.table import table
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset


def test_texts_of_several_images(tmp_path: Path) -> None:
    """In several shards and splits; an image twice in a record or in two records counts once."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(40):
        ids = tuple(f"q{i}" if i < 12 else "" for i in rng.integers(0, 16, rng.integers(1, 4)))
        # Texts 3 and 7 have other characters wherever the number of the record is even.
        captions = tuple(f"{i or '无'}{'狗' * (i in ('q3', 'q7') and number % 2)}" for i in ids)
        image = rng.integers(25)
        examples.append(Example(encode(seed=int(image)), captions, f"image{image}", text_ids=ids))
    write_dataset(tmp_path, {"train": examples, "test": [examples[0]]}, shards=4, text_ids=True)
    seen = [
        (i, one.image_id, caption)
        for one in examples
        for i, caption in zip(one.text_ids, one.captions, strict=True)
        if i
    ]
    images = {i: {image for other, image, _ in seen if other == i} for i, *_ in seen}
    wordings = {i: {caption for other, _, caption in seen if other == i} for i, *_ in seen}
    several = {i for i in images if len(images[i]) > 1}
    report = checked(tmp_path)
    counted = {
        "captions": len(seen),
        "texts": len(images),
        "of_several_images": len(several),
        "captions_of_several_images": sum(i in several for i, *_ in seen),
        "of_several_wordings": sum(len(wordings[i]) > 1 for i in wordings),
    }
    assert 0 < counted["of_several_wordings"] < counted["of_several_images"] <= counted["texts"] < counted["captions"]
    assert report.splits["train"].captions.text_ids == counted
    assert f"train: {counted['of_several_wordings']} of the {counted['texts']} text_ids" in "\n".join(report.warnings)
    rows = [line.split() for line in table(report).splitlines()]
    assert ["of_several_images", str(counted["of_several_images"]), "0"] in rows
    assert checked(tmp_path, processes=2) == report


def test_without_text_ids_nothing_is_said_of_them(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [dataclasses.replace(example(number), text_ids=()) for number in range(3)]})
    report = checked(tmp_path)
    assert report.splits["train"].captions.text_ids == {}
    assert "text_id" not in table(report)
