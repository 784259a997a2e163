"""Pairs for matching: true and wrong ones in turn, and no wrong one that is right."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from programs import loaded_benchmark

LINES = [
    {"image": "0.jpg", "captions": ["两只狗", "狗"]},
    {"image": "1.jpg", "captions": ["狗"]},
    {"image": "2.jpg", "captions": ["一匹马"]},
    {"image": "3.jpg", "captions": ["大海"]},
]


class Angles:
    """A model in which image and text number n point n tenths of a turn away from the first."""

    order = ("两只狗", "狗", "一匹马", "大海")

    def encode_image(self, images: list[Path]) -> SimpleNamespace:
        return SimpleNamespace(embed=self._at([int(image.stem) for image in images]))

    def encode_text(self, texts: list[str]) -> SimpleNamespace:
        return SimpleNamespace(embed=self._at([self.order.index(text) for text in texts]))

    def _at(self, places: list[int]) -> np.ndarray:
        angle = np.array(places) * 0.2 * np.pi
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    with loaded_benchmark("labelled_pairs") as module:
        yield module


def made(program: ModuleType, nearest: int) -> list[dict[str, Any]]:
    return list(program.pairs(Angles(), Path("photos"), LINES, 2, nearest, np.random.default_rng(0)))


def test_half_is_true_and_no_wrong_one_is_right(program: ModuleType) -> None:
    pairs = made(program, nearest=2)
    assert [pair["label"] for pair in pairs] == [1, 0] * 5
    own = {(line["image"], caption) for line in LINES for caption in line["captions"]}
    assert all(((pair["image"], pair["text"]) in own) == bool(pair["label"]) for pair in pairs)


def test_hard_ones_are_the_nearest(program: ModuleType) -> None:
    wrong = made(program, nearest=1)[1::2]
    assert [pair["image"] for pair in wrong[1::2]] == ["2.jpg", "1.jpg"]  # of 狗, whose own are 0 and 1, and of 一匹马
