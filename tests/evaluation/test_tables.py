"""The table for people: what it lists, what it leaves to the JSON file, and how it stays in line."""

import dataclasses
from typing import Any

import pytest

from r2d2_jax.evaluation.published import published_retrieval
from r2d2_jax.evaluation.tables import columns_of, padded, table


def document(**changes: Any) -> dict[str, Any]:
    """Of a classification of sixty classes; the last has no image."""
    classes: list[dict[str, Any]] = [
        {"name": f"{n}类", "images": 1000, "top1": float(n), "confused": []} for n in range(59)
    ]
    classes[0]["confused"] = [{"class": "1类", "images": 1000}]
    classes.append({"name": "空", "images": 0, "top1": None, "confused": []})
    return {
        "task": "classification",
        "data": {"folder": "data/mine", "dataset": "classification", "split": "test", "records": 59000},
        "checkpoint": {"path": "runs/a", "weights": "teacher", "summary": "PRD2", "lineage": []},
        "settings": {"batch_size": 64, "max_images": 0, "templates": ["{}", "一张{}的照片"]},
        "counts": {"images": 59000, "classes": 60, "unusable": 0},
        "figures": {"dual": {"top1": 29.0, "per_class": 29.0}, "chance": {"top1": 5 / 3, "per_class": 5 / 3}},
        "intervals": {"dual": {"top1": (28.6, 29.4)}},
        "classes": classes,
        "worst_classes": classes[:1],
        "published": [],
        "version": "0.2.0",
        "date": "2030-01-02",
        "seconds": 61.5,
    } | changes


def test_of_many_classes_the_worst_are_listed() -> None:
    lines = table(document()).splitlines()
    assert lines[0] == "checkpoint  runs/a (teacher): PRD2"
    assert lines[1] == "            training not recorded"
    assert lines[2] == "data        data/mine, split test: 59,000 images, 60 classes"  # what is zero is not said
    assert "templates   {}  一张{}的照片" in lines
    cells = [line.split() for line in lines]
    assert ["top-1", "29.0", "(28.6-29.4)", "1.7"] in cells
    assert [row for row in cells if row and row[0] == "0类"] == [["0类", "1,000", "0.0"], ["0类", "1类", "1,000"]]
    assert not any("2类" in line for line in lines)
    assert "the 1 worst of 60 classes; the JSON file has all" in lines


def test_of_few_classes_all_are_listed_and_one_without_images_too() -> None:
    whole = document()
    printed = table(document(classes=whole["classes"][-2:]))
    assert ["空", "0", "-"] in [line.split() for line in printed.splitlines()]
    assert "worst of" not in printed


def test_sources_of_published_figures_are_named_once() -> None:
    row = {"model": "A", "setting": "zero-shot", "split": "", "figures": {"mean": 12.34}, "source": "a paper"}
    rows = [row, row | {"model": "B", "figures": {"i2t_r1": 5.0}}, row | {"source": "another"}]
    lines = table(document(published=rows)).splitlines()[-6:]
    assert lines[0].startswith("published, not measured here")
    assert [line.split()[-1] for line in lines[1:4]] == ["[1]", "[1]", "[2]"]
    assert lines[1].split()[-4:-1] == ["-", "-", "12.3"]
    assert "5.0/-/-" in lines[2]
    assert lines[4:] == ["[1] a paper", "[2] another"]


@pytest.mark.parametrize("dataset", ["flickr30k_cn", "flickr30k_cna", "muge", "icr"])
def test_a_terminal_has_eighty_columns(dataset: str) -> None:
    published = [dataclasses.asdict(row) for row in published_retrieval(dataset)]
    settings = {
        "directions": ["i2t", "t2i"],
        "templates": ["一张清晰的{}照片"] * 9,
        "devices": "8 x H100 80GB HBM3",
    }
    worst = [{"name": "雏菊", "images": 9, "top1": 0.0, "confused": [{"class": "向日葵" * 7, "images": 3}] * 3}]
    lines = table(document(published=published, settings=settings, worst_classes=worst)).splitlines()
    assert max(map(columns_of, lines)) <= 80
    assert sum("一张清晰的{}照片" in line for line in lines) > 1
    words = " ".join(table(document(settings=settings)).split())
    assert "directions i2t and t2i, devices 8 x H100 80GB HBM3" in words


@pytest.mark.parametrize(("text", "columns"), [("红圆", 4), ("a红", 3), ("", 0), ("，", 2)])
def test_a_chinese_character_takes_two_columns(text: str, columns: int) -> None:
    assert columns_of(text) == columns
    assert columns_of(padded(text, 10)) == 10
