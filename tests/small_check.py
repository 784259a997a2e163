"""A corpus with known faults, and how tests check it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from small_data import encode

from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.report import CheckSettings, Report
from r2d2_jax.preparation.checks.sources import DatasetSource

Line = tuple[str, str, list[str]]  # image, split, captions

IMAGES = {
    "a.jpg": encode((40, 30), seed=1),
    "again.jpg": encode((40, 30), seed=1),
    "tall.png": encode((20, 90), seed=2, kind="PNG"),
    "c.jpg": encode((64, 48), seed=3),
    "cut.jpg": encode((200, 200), seed=4)[:-300],
    "text.jpg": b"this is no image",
    "d.jpg": encode((40, 30), seed=5),
    "e.jpg": encode((40, 30), seed=6),
    "a_in_test.jpg": encode((40, 30), seed=1),
}
LINES: list[Line] = [
    ("a.jpg", "train", ["一只狗", "红球"]),
    ("again.jpg", "train", ["一只狗"]),
    ("tall.png", "train", ["一只狗", "绿球", "绿球"]),
    ("c.jpg", "train", ["一二三四五六七八九十", "猫"]),
    ("cut.jpg", "train", ["红球"]),
    ("text.jpg", "train", ["红球"]),
    ("absent.jpg", "train", ["红球"]),
    ("empty.jpg", "train", [""]),
    ("d.jpg", "val", ["一只狗", "左右"]),
    ("e.jpg", "test", ["左右"]),
    ("a_in_test.jpg", "test", ["三只狗"]),
    ("c.jpg", "test", ["红球"]),
    ("a.jpg", "train", ["说了两次"]),
]


def settings(vocabulary: Path | None = None, **changes: Any) -> CheckSettings:
    """CheckSettings for small images and short texts, with changes."""
    defaults = CheckSettings(str(vocabulary) if vocabulary else None, 8, 32, 1, 0.01, 0.05)
    return replace(defaults, **changes)


def checked(data: Path, *, processes: int = 1, **changes: Any) -> Report:
    """The report on a prepared dataset."""
    return check(lambda folder: DatasetSource(str(data)), "dataset", settings(**changes), processes=processes)
