"""Folders of made-up runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_logs import MakeRun


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str, lines: list[dict[str, Any]], end: str = "") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + end, encoding="utf-8")
        return folder

    return make
