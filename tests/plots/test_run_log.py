"""What is read of a run's log, and what is said where there is none."""

from pathlib import Path

import numpy as np
import pytest
from small_logs import MakeRun, evaluation_line, training_lines

from r2d2_jax.errors import UserError
from r2d2_jax.plots.run_log import read_runs


def test_lines_over_epochs(make_run: MakeRun) -> None:
    """Evaluations say no epoch; a null is no point; of two lines for a step the later counts; half a line is none."""
    lines = [*training_lines(6), evaluation_line(4, 20.0), {"step": 3, "epoch": 0.75, "loss": 5.0, "fgr": None}]
    (run,) = read_runs([make_run("演示", lines, end='{"step": 7, "lo')])
    assert run.name == "演示"
    np.testing.assert_allclose(run.lines["loss"].epoch, np.arange(1, 7) / 4)
    np.testing.assert_allclose(run.lines["loss"].value, [8.99, 8.98, 5.0, 8.96, 8.95, 8.94])
    assert len(run.lines["fgr"].value) == 6
    np.testing.assert_allclose(run.lines["validation/dual/i2t_r1"].epoch, [1.0])
    assert "epoch" not in run.lines
    assert "loss" in run.trained()
    assert "validation/reranked/mean" in run.evaluated()


def test_numbers_that_no_axis_has_are_left_out(make_run: MakeRun) -> None:
    """A log may be anything that a user has touched; the rest of it is drawn."""
    odd = '{"step": 4, "epoch": "1", "loss": NaN, "fgr": -1e308}\n{"step": 1%s, "loss": 1}\n' % ("0" * 400)
    (run,) = read_runs([make_run("run", training_lines(3), end=odd + '{"step": 5, "epoch": [1], "loss": 7}\n')])
    np.testing.assert_allclose(run.lines["loss"].value, [8.99, 8.98, 8.97, 7])
    assert len(run.lines["fgr"].value) == 3


def test_names_are_as_short_as_tells_them_apart(make_run: MakeRun) -> None:
    folders = [make_run(name, training_lines(2)) for name in ("a/demo", "b/demo", "b/other")]
    assert [run.name for run in read_runs(folders)] == ["a/demo", "b/demo", "other"]


def test_what_is_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    empty, damaged = make_run("empty", []), make_run("damaged", [], end="no JSON\n[1]\n{}\n")
    (tmp_path / "other").mkdir()
    directory = tmp_path / "odd" / "metrics.jsonl"
    directory.mkdir(parents=True)
    for folder, message in (
        (tmp_path / "none", "there is no folder .*none; expected the --workdir of a run"),
        (tmp_path / "other", "other holds no metrics.jsonl; expected the --workdir of a run that has made its first"),
        (tmp_path / "odd", "odd holds no metrics.jsonl"),
        (empty, "empty/metrics.jsonl has no line that can be drawn; it gets its first one after train.log_every steps"),
        (damaged, "damaged/metrics.jsonl has no line that can be drawn"),
    ):
        with pytest.raises(UserError, match=message):
            read_runs([folder])
