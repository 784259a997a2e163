"""launch/report.py: the page of a run and of an evaluation, and one message for whatever is wrong."""

import contextlib
import json
import logging
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from programs import called, write_config
from small_model import config_values, write_vocabulary
from small_reports import EVIL, Page, write_report_dataset

from r2d2_jax.atomic import written_whole
from r2d2_jax.launch import evaluate, main, program, report
from r2d2_jax.launch.report import report_at_the_end
from r2d2_jax.plots import style
from r2d2_jax.report import writing
from r2d2_jax.report.subject import open_subject
from r2d2_jax.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and the file of an evaluation of it."""
    path = tmp_path_factory.mktemp("report")
    data = write_vocabulary(write_report_dataset(path / "data"))
    changes = {
        "data": {"directory": str(data), "foil_split": "swapped"},
        "train": {"epochs": 1.0, "log_every": 1},
        "loss": {"contrastive": "gcpr", "mlm": False, "fgd": False},  # compiles fastest with match heads
    }
    config = write_config(path, config_values(changes))
    done = called(main.main, f"--config={config}", f"--workdir={path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"Report: {path / 'run' / 'report.html'}\n"), done.stderr
    flags = ("--split=validation", "--rerank=4", f"--json={path / 'measured.json'}")
    done = called(evaluate.main, f"--checkpoint={path / 'run'}", f"--data={data}", *flags)
    assert done.returncode == 0, done.stderr
    return path


def test_a_training_ends_with_a_page_of_its_figures_and_answers(folder: Path) -> None:
    found = Page((folder / "run" / "report.html").read_text(encoding="utf-8"))
    figures = json.loads((folder / "run" / "evaluation.json").read_text())
    shown = {name: value for name, value in figures.items() if name.startswith(("validation/", "foil/"))}
    assert shown
    for value in shown.values():
        assert f"{value:.1f}" in found.texts
    titles = (
        "What was trained",
        "How good it is",
        "What the second stage changes",
        "Curves",
        "From a caption to pictures",
    )
    for title in (*titles, "From a picture to captions", "Swapped pairs", "Where the model looks", "How to go on"):
        assert title in found.text
    assert EVIL in found.text
    assert found.images > 20
    before, queries = figures["validation/dual/t2i_r1"], 20
    row = found.texts[found.texts.index("from a caption to pictures") :][1:3]
    assert row == [str(queries), str(round(before * queries / 100))]


def test_the_same_command_writes_the_same_page_elsewhere(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime for path in (folder / "run").rglob("*")}
    output = tmp_path / "new" / "page.html"
    done = called(report.main, str(folder / "run"), f"--output={output}")
    assert (done.returncode, done.stdout) == (0, f"Report: {output}\n")
    assert output.read_bytes() == (folder / "run" / "report.html").read_bytes()
    assert {path: path.stat().st_mtime for path in (folder / "run").rglob("*")} == before


def test_an_evaluation_has_a_page_beside_its_file(folder: Path) -> None:
    done = called(report.main, str(folder / "measured.json"), "--queries=5")
    assert (done.returncode, done.stdout) == (0, f"Report: {folder / 'measured.html'}\n")
    found = Page((folder / "measured.html").read_text(encoding="utf-8"))
    assert "I2T R@1" in found.text
    assert "in brackets: 95 %" in found.text
    assert "5 of 20" in found.text
    assert "Swapped pairs" not in found.text


def test_an_evaluation_whose_model_is_gone_has_what_the_file_holds(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "measured.json").read_text())
    document["checkpoint"]["path"] = str(tmp_path / "gone")
    (tmp_path / "alone.json").write_text(json.dumps(document))
    done = called(report.main, str(tmp_path / "alone.json"))
    assert done.returncode == 0
    found = Page((tmp_path / "alone.html").read_text(encoding="utf-8"))
    assert "The model that was measured cannot be read, so no answers are shown." in found.text
    assert "I2T R@1" in found.text
    assert "From a caption" not in found.text


def test_what_it_refuses(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "file").write_text("")
    run = str(folder / "run")
    for arguments, message in (
        ([str(tmp_path / "none")], "error: there is no "),
        (
            [str(tmp_path)],
            " is no run: it holds no folder checkpoints; expected the --workdir of a run, or a file that",
        ),
        ([str(tmp_path / "empty")], "error: no checkpoint under "),
        ([str(tmp_path / "other.json")], "other.json has no checkpoint, counts, data, figures, "),
        ([str(folder / "small.py")], "small.py cannot be read as JSON: "),
        (
            [run, f"--output={tmp_path / 'file' / 'a.html'}"],
            "a.html: File exists; name a file in a folder that can",
        ),
        ([run, "--output=a.pdf"], "error: --output is 'a.pdf'; expected a name that ends in .html"),
        ([run, "--output="], "error: --output is ''; expected a name that ends in .html"),
        ([run, "--queries=0"], "error: --queries is 0; expected 1 or more"),
    ):
        done = called(report.main, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        errors = [line for line in done.stderr.splitlines() if not line.startswith("opening ")]
        assert len(errors) == 1, done.stderr
        assert message in errors[0]


def test_a_run_whose_data_and_log_are_gone_says_so(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    shutil.rmtree(run / "plots")
    (run / "metrics.jsonl").unlink()
    (run / "evaluation.json").unlink()
    (folder / "data").rename(folder / "moved")
    try:
        done = called(report.main, str(run))
    finally:
        (folder / "moved").rename(folder / "data")
    assert done.returncode == 0, done.stderr
    found = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "There are no curves." in found.text
    assert "Nothing of the split validation is shown." in found.text
    assert "How good it is" not in found.text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("the disk is full"), "there is no report of the run: the disk is full"),
        (RuntimeError("out of memory"), "there is no report of the run, which itself is complete"),
    ],
)
def test_a_run_whose_report_fails_has_ended_well(
    error: BaseException,
    message: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(writing, "write_report", fail)
    report_at_the_end(tmp_path)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [message]


def test_a_stop_at_the_end_leaves_nothing_by_halves_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while the last evaluation is written, pictures are drawn, the report is computed, or written."""
    run, signals = tmp_path / "run", iter((signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT))
    shutil.copytree(folder / "run", run)
    (run / "report.html").unlink()

    def at_its_end(arguments: Sequence[str]) -> int:
        """What the program does once the run is finished, without another evaluation."""
        return program.run(lambda _: main._show(run, stopped=False), arguments)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {path for path in tmp_path.rglob("*") if "tensorboard" not in path.parts}
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of the test suite ignores it
    try:
        for place, called_program, said in (
            ((loop, "write_evaluation"), main.main, "stopped before pictures and report; "),
            ((style, "written_whole"), at_its_end, "stopped while the pictures were drawn; "),
            ((writing, "find"), at_its_end, "stopped while the report was written; "),
            ((writing, "written_whole"), at_its_end, "stopped while the report was written; "),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(*place, interrupted(getattr(*place), next(signals)))
                if place[0] is writing:
                    patch.setattr(main, "draw", lambda *_: None)  # takes seconds
                done = called(called_program, f"--config={folder / 'small.py'}", f"--workdir={run}")
            assert done.returncode == program.STOPPED, place
            assert said in done.stderr
            assert "Traceback" not in done.stderr
            assert {path for path in tmp_path.rglob("*") if "tensorboard" not in path.parts} == before, place
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    done = called(main.main, f"--config={folder / 'small.py'}", f"--workdir={run}")
    assert (done.returncode, (run / "report.html").is_file()) == (0, True), done.stderr


def interrupted(function: Callable[..., Any], number: signal.Signals) -> Callable[..., Any]:
    """The function, during which the signal comes; of what gives a file to write, when half of the file is there."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if function is not written_whole:
            signal.raise_signal(number)
            return function(*arguments, **named)
        return half_written(*arguments, **named)

    @contextlib.contextmanager
    def half_written(path: Path, **named: Any) -> Iterator[Path]:
        with written_whole(path, **named) as unfinished:
            unfinished.write_text("half")
            signal.raise_signal(number)
            yield unfinished

    return wrapped


def test_the_last_evaluation_of_a_run_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or figures and weights could be of two evaluations, where the run goes on meanwhile."""
    read, original = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **named: (read.append(path.name), original(path, **named))[1])
    subject = open_subject(folder / "run")
    assert read.count("evaluation.json") == 1
    assert subject.model is not None
    assert subject.figures == subject.model.evaluation


def test_several_processes_leave_the_report_to_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main.jax, "process_count", lambda: 2)
    main._report(tmp_path / "a run")
    assert capsys.readouterr().out.endswith(f"r2d2-report '{tmp_path}/a run'\n")
