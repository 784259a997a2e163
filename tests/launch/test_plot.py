"""launch/plot.py, and the pictures that a training run draws at its end."""

import ast
import logging
from pathlib import Path

import pytest
from programs import called
from small_logs import training_lines

from r2d2_jax.errors import UserError
from r2d2_jax.launch.plot import drawn_at_the_end, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n".replace("'", '"') for line in training_lines(2)))
    return folder


def test_prints_what_it_draws_and_where(run: Path, tmp_path: Path) -> None:
    done = called(main, str(run))
    assert (done.returncode, done.stderr) == (0, "")
    names = ("losses", "accuracies", "optimisation", "speed")
    assert done.stdout.split() == [str(run / "plots" / f"{name}.png") for name in names]
    done = called(main, str(run), str(run), f"--output={tmp_path / 'both'}")
    assert (done.returncode, len(list((tmp_path / "both").glob("*.png")))) == (0, 4)


def test_what_it_refuses(run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path / "none")], "error: there is no folder "),
        ([str(run), str(run)], "error: 2 runs are named and no folder for the pictures; add --output=FOLDER"),
        ([str(run), f"--output={run / 'metrics.jsonl'}"], "metrics.jsonl"),
        ([str(run), "--output="], "error: --output is ''; expected a folder for the pictures"),
        ([str(run), "--output=s3://pictures"], "error: s3://pictures is an address of s3://, which cannot be opened"),
    ):
        done = called(main, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("the disk is full"), "there are no pictures of the run: the disk is full"),
        (OSError("no folder for a cache"), "there are no pictures of the run: no folder for a cache"),
    ],
)
def test_what_has_pictures_that_cannot_be_drawn_has_ended_well(
    error: BaseException, message: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    drawn_at_the_end(fail, run, "the run")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [message]


def test_a_stop_while_pictures_are_drawn_stops_the_program(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn_at_the_end(stopped, run, "the run")
    message = "stopped while the pictures were drawn; the run itself is complete, the same command draws them"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [message]


def test_matplotlib_is_imported_where_something_is_drawn_and_not_before() -> None:
    """A program names `r2d2_jax.plots` inside of a function alone; decoding processes import the programs, too."""
    for path in (ROOT / "r2d2_jax").rglob("*.py"):
        if path.parent.name != "plots":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            text = "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
            assert "r2d2_jax.plots" not in text, path
            assert "matplotlib" not in text, path
