"""A run's folder as the program sees it: any name, one run at a time, damaged checkpoints."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import called, write_config
from small_model import CHEAPEST, assert_bitwise_equal, config_values, log_lines, saved_state
from small_runs import NO_EVALUATION, before_batch, kept, run

from r2d2_jax.errors import UserError
from r2d2_jax.launch import convert, main
from r2d2_jax.train.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
SHORT: tuple[dict[str, Any], ...] = (
    CHEAPEST,
    NO_EVALUATION,
    {"train": {"epochs": 1.0, "checkpoint_every": 1, "log_every": 1}},
)


def program(prepared: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    file = write_config(folder, config_values(*SHORT, {"data": {"directory": str(prepared)}}))
    return called(main.main, f"--config={file}", *flags)


@pytest.mark.parametrize("name", ["bs[16]", "~", "红 ** {a}"])
def test_a_folder_of_any_name(name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, resumed and converted; ~ is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "runs" / "bs1").mkdir(parents=True)
    given = f"{name}/run" if name == "~" else f"runs/{name}"
    workdir = tmp_path / "home" / "run" if name == "~" else tmp_path / given
    done = program(prepared, tmp_path, f"--workdir={given}")
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    assert kept(workdir) == [3, 4]
    assert "resuming after step 4" in program(prepared, tmp_path, f"--workdir={given}").stderr
    converted = called(convert.main, f"--input={given}", f"--output={name}/converted")
    assert converted.returncode == 0, converted.stderr
    assert not list((tmp_path / "runs" / "bs1").iterdir())


@pytest.mark.parametrize("workdir", ["/gs/runs/x", "runs\\x", "runs/\udcff"])
def test_a_folder_that_cannot_be_used_is_refused_before_the_first_step(
    workdir: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = program(prepared, tmp_path, f"--workdir={workdir}")
    assert done.returncode == 2
    assert "error: --workdir " in done.stderr
    assert "compiling" not in done.stderr
    assert not Path("/gs").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["small.py"]


def test_a_damaged_checkpoint_stops_the_run_until_it_is_told_to_go_on(prepared: Path, tmp_path: Path) -> None:
    """It ends as an undisturbed run does."""
    workdir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    for folder in (workdir, undisturbed):
        assert program(prepared, tmp_path, f"--workdir={folder}").returncode == 0
    expected = saved_state(undisturbed)
    newest = workdir / "checkpoints" / "4"
    (newest / "progress" / "metadata").write_bytes(b"")
    with (workdir / "metrics.jsonl").open("ab") as log:
        log.write(b"\0" * 64 + b"\n")
    refused = program(prepared, tmp_path, f"--workdir={workdir}")
    assert refused.returncode == 2
    assert refused.stderr.count("error: ") == 1
    assert f"error: the checkpoint of step 4 is damaged: {newest}/progress/metadata has 0 bytes of " in refused.stderr
    assert (
        f"rename {newest} to 4.damaged to go on from step 3; launch/main.py does so with --skip_dam" in refused.stderr
    )
    assert "Traceback" not in refused.stderr
    done = program(prepared, tmp_path, f"--workdir={workdir}", "--skip_damaged")
    assert done.returncode == 0, done.stderr
    assert "it is renamed to 4.damaged" in done.stderr
    assert "resuming after step 3" in done.stderr
    assert "metrics.jsonl: damaged lines that are dropped: 1" in done.stderr
    assert (newest.with_name("4.damaged") / "progress" / "metadata").exists()
    assert log_lines(workdir) == log_lines(undisturbed)
    assert_bitwise_equal(saved_state(workdir), expected)


def test_a_checkpoint_that_cannot_be_read_back_ends_the_run(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that loses what it was given: the run says so at once, and keeps the checkpoint before."""
    original = Checkpoints._read_back

    def emptied(self: Checkpoints) -> None:
        for path in self.directory.glob("2.*/state/_METADATA"):
            path.write_bytes(b"")
        original(self)

    monkeypatch.setattr(Checkpoints, "_read_back", emptied)
    done = program(prepared, tmp_path, f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error: ") == 1
    assert "error: a checkpoint was written and cannot be read back: " in done.stderr
    assert "/state/_METADATA is cut short or has other bytes than were written; it is not kept, and the " in done.stderr
    assert f"the last good checkpoint is step 1 in {tmp_path / 'run'}/checkpoints; check the disk" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.undo()
    again = program(prepared, tmp_path, f"--workdir={tmp_path / 'run'}")
    assert again.returncode == 0, again.stderr
    assert "resuming after step 1" in again.stderr


def test_the_same_command_twice_at_once(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second hears who runs; the first, and what it reads and writes, is not disturbed."""
    workdir, heard = tmp_path / "run", []

    def second(call: int) -> None:
        if call == 3:
            with monkeypatch.context() as patch:
                patch.undo()
                heard.append(program(prepared, tmp_path, f"--workdir={workdir}"))
                heard.append(called(convert.main, f"--input={workdir}", f"--output={tmp_path / 'converted'}"))

    before_batch(monkeypatch, second)
    assert run(prepared, workdir, *SHORT).finished
    refused, converted = heard
    assert refused.returncode == 2
    assert (
        f"error: another run is at work in {workdir}; let it end, or choose another --workdir. It is " in refused.stderr
    )
    assert f"It is process {os.getpid()} on " in refused.stderr
    assert f"if that has ended, remove {workdir}/lock" in refused.stderr
    assert "compiling" not in refused.stderr
    assert converted.returncode == 0, converted.stderr
    assert kept(workdir) == [3, 4]
    assert [line["step"] for line in log_lines(workdir) if "loss" in line] == [1, 2, 3, 4]


def test_a_killed_run_resumes_at_once(prepared: Path, tmp_path: Path) -> None:
    """Its lock file is still there, and names it."""
    program = """
import json, os, signal, sys
from pathlib import Path
from ml_collections import ConfigDict
from r2d2_jax.config.reading import Config
from r2d2_jax.train import loop
loop.next_batch = lambda batches, progress: os.kill(os.getpid(), signal.SIGKILL)
loop.train(Config.from_config_dict(ConfigDict(json.loads(sys.argv[1]))), Path(sys.argv[2]))
"""
    values = config_values(*SHORT, {"data": {"directory": str(prepared)}})
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(values), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "lock").read_text().startswith("process ")
    assert run(prepared, tmp_path, *SHORT).finished
    assert not (tmp_path / "lock").exists()


def test_a_folder_that_is_a_file(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"cannot write .*/run: .*; check --workdir and its permissions"):
        run(prepared, tmp_path / "run", *SHORT)
