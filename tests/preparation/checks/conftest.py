"""The corpora that the tests of the check share."""

import functools
import json
import random
from pathlib import Path

import pytest
from small_check import IMAGES, LINES, settings
from small_data import encode, example

from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.report import Report
from r2d2_jax.preparation.checks.sources import CorpusSource
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> JsonLines:
    """The corpus of IMAGES and LINES, and a line that names no split."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    for name, image in IMAGES.items():
        (folder / "images" / name).write_bytes(image)
    lines = [json.dumps({"image": image, "captions": captions, "split": split}) for image, split, captions in LINES]
    (folder / "captions.jsonl").write_text("\n".join([*lines, '{"image": "b.jpg"}']))
    return JsonLines(str(folder / "images"), str(folder / "captions.jsonl"))


@pytest.fixture(scope="session")
def report(corpus: JsonLines, vocabulary: Path) -> Report:
    """The report on it."""
    return check(functools.partial(CorpusSource, corpus), "corpus json_lines", settings(vocabulary))


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 60 records in seven shards, with repeats within shards, across them and across splits."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("many")

    def made(number: int) -> Example:
        captions = [f"{draw.randrange(9)}只{draw.choice('狗猫')}" for _ in range(draw.randrange(1, 4))]
        return example(number, *captions, image=encode(seed=draw.randrange(30)))

    write_dataset(folder, {"test": map(made, range(20)), "train": map(made, range(15, 55))}, shards=7)
    return folder
