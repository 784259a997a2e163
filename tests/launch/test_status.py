"""launch/status.py: one line for each run, and what it refuses."""

import dataclasses
import time
from pathlib import Path

import pytest
from programs import called

from r2d2_jax.launch.status import main
from r2d2_jax.status import FAILED, FINISHED, TRAINING, Status, age, write_status

NOW = 1_800_000_000.0
WORKING = Status(TRAINING, 1200, 5062, 440.4, 3600.0, "", None, "host", 7, 1, NOW - 5)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr(time, "localtime", time.gmtime)


def written(folder: Path, **changes: object) -> str:
    folder.mkdir()
    write_status(dataclasses.replace(WORKING, **changes), folder)  # type: ignore[arg-type]
    return str(folder)


def test_runs_in_one_table_and_their_errors_below(tmp_path: Path) -> None:
    names = [
        written(tmp_path / "a"),
        written(tmp_path / "b", time=NOW - 7200, error="no space", error_time=NOW - 86400 * 3),
        written(tmp_path / "c", state=FINISHED, step=5062, time=NOW - 600),
        written(tmp_path / "d", state=FAILED, pairs_per_second=None, error="a shard is damaged", error_time=NOW - 60),
    ]
    done = called(main, *names)
    assert (done.returncode, done.stderr) == (0, "")
    columns = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in done.stdout.splitlines()]
    assert columns == [
        ["run", "state", "steps", "pairs/s", "end of training", "last sign"],
        [names[0], "training", "1,200 of 5,062", "440", "2027-01-15 08:59", "5 s ago"],
        [names[1], "silent, was training", "1,200 of 5,062", "440", "2 h ago"],
        [names[2], "finished", "5,062 of 5,062", "440", "10 min ago"],
        [names[3], "failed", "1,200 of 5,062", "5 s ago"],
        [f"{names[1]}, 3 days ago: no space"],
        [f"{names[3]}, 60 s ago: a shard is damaged"],
    ]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    done = called(main, written(tmp_path / "a"), str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {tmp_path} has no status.json; expected the --workdir of a run that has started" in done.stderr


@pytest.mark.parametrize("content", ["", "[1]", '{"state": "training"}'])
def test_a_damaged_status_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(content, encoding="utf-8")
    done = called(main, str(tmp_path))
    assert done.returncode == 2
    assert "status.json cannot be read: " in done.stderr
    assert "otherwise remove it" in done.stderr


def test_ages_have_one_unit() -> None:
    spans = (-3, 119, 120, 7199, 7200, 172799, 172800)
    assert [age(span) for span in spans] == ["0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 days"]
