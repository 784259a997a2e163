"""The table has the figures of the JSON file, which are those of the report."""

import json
from pathlib import Path

from small_check import checked
from small_data import example

from r2d2_jax.launch.json_file import write_json
from r2d2_jax.preparation.checks.report import Report
from r2d2_jax.preparation.checks.table import BLOCKS, ROWS, as_json, cell, table, value_at
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.writer import write_dataset


def rows_of(printed: str) -> dict[str, list[str]]:
    """Title -> cells of every row of the table."""
    lines = printed.split("\n\n")[1].splitlines()
    return {
        title: cells
        for title, *cells in ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:])
    }


def test_the_table_has_the_figures_of_the_json_file(report: Report, tmp_path: Path) -> None:
    write_json(as_json(report), str(tmp_path / "check.json"))
    document = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert document == as_json(report)
    rows, splits = rows_of(table(report)), document["splits"].values()
    for title, path, form in ROWS:
        assert rows[title.strip()] == [cell(value_at(split, path), form) for split in splits], title
    for _, path in BLOCKS:
        for name in value_at(document["splits"]["train"], path) or {}:
            assert rows[name] == [f"{value_at(split, path).get(name, 0)}" for split in splits], name
    for finding in document["errors"]:
        assert f"error: {finding}" in table(report)


def test_cells() -> None:
    assert cell(12345, "number") == "12,345"
    assert cell(0.12345, "share") == "12.35%"
    assert cell({"min": 1, "median": 2000, "p95": 3, "max": 4}, "range") == "1 / 2,000 / 4"
    assert cell({"min": 1, "median": 2000, "p95": 3, "max": 4}, "tail") == "2,000 / 3 / 4"
    assert cell({"min": 1, "max": 4}, "limits") == "1 / 4"


def test_lists_are_printed(report: Report, corpus: JsonLines) -> None:
    printed = table(report)
    assert "train, missing, the first of 1:\n" in printed
    assert "the most frequent captions of several images, and how often:\n  3  一只狗\n" in printed
    assert "train, characters that became [UNK], and how often:\n  1  猫\n" in printed
    assert f"train, the same image under several image_ids:\n  {corpus.annotations}:1 = " in printed
    assert (
        "test and train: in both are 1 captions, 2 images by their bytes, 1 by their image_id, 0 of "
        "these with other bytes\n"
    ) in printed
    assert "unusable annotations, 2 of them without a split; the first of all:\n" in printed


def test_invisible_characters_are_written_out(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [example(0, "一\u200b\n狗"), example(1, "一\u200b\n狗")]})
    assert "\n  2  一U+200BU+000A狗\n" in table(checked(tmp_path))
