"""benchmarks/bucket_memory.py: what it measures, and where it fails."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
from bucket_server import BUCKET
from programs import called, loaded_benchmark

from r2d2_jax.errors import UserError


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    with loaded_benchmark("bucket_memory") as module:
        yield module


def played(
    program: ModuleType, patch: pytest.MonkeyPatch, peaks: dict[str, float], *flags: str
) -> subprocess.CompletedProcess[str]:
    """The program with children that need so many MiB, by their act and place, and in a bucket 40 before they begin."""
    patch.setattr(program, "bucket", lambda: nullcontext({"BUCKET": "a-bucket"}))
    patch.setattr(
        program,
        "in_a_child",
        lambda act, place, _: (
            {"before": 340.0, "peak": 40 + peaks[f"{act} bucket"]}
            if "://" in place
            else {"before": 300.0, "peak": peaks[f"{act} disk"]}
        ),
    )
    return called(program.main, "--mebibytes=100", *flags)


def test_a_bucket_that_needs_less_than_a_checkpoint_more(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peaks = {"save disk": 500.0, "save bucket": 599.0, "restore disk": 450.0, "restore bucket": 440.0}
    ended = played(program, monkeypatch, peaks, f"--json={tmp_path / 'memory.json'}")
    assert ended.returncode == 0, ended.stderr
    assert "the bucket needs +99 MiB to save and -10 MiB to restore: +0.99 and -0.10 checkpoints" in ended.stdout
    written = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert written["more_in_the_bucket"] == {"save": 99.0, "restore": -10.0}
    assert written["rows"]["save, bucket"] == {"before": 340.0, "peak": 639.0}


@pytest.mark.parametrize("act", ["save", "restore"])
def test_a_bucket_that_needs_a_checkpoint_more(program: ModuleType, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    peaks = {"save disk": 500.0, "save bucket": 500.0, "restore disk": 500.0, "restore bucket": 500.0}
    assert played(program, monkeypatch, peaks | {f"{act} bucket": 600.0}).returncode == 1


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_state_is_saved_and_restored(
    program: ModuleType, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Here, and not in processes of their own, whose peaks alone would mean something."""
    workdir = f"{request.getfixturevalue('bucket')}/run" if place == "bucket" else str(tmp_path)
    for act in ("save", "restore"):
        row = program.measured(act, workdir, 1)
        assert 50 < row["before"] < row["peak"] + 1  # MiB: the kernel's two counts may differ by some pages


def test_a_child_and_the_bucket_as_a_process(program: ModuleType, tmp_path: Path) -> None:
    with program.bucket() as environment:
        assert environment["BUCKET"] == BUCKET
        assert environment["STORAGE_EMULATOR_HOST"].startswith("http://127.0.0.1:")
        with pytest.raises(UserError, match="restore in s3://nowhere ended with status 2; it printed:"):
            program.in_a_child("restore", "s3://nowhere", environment)


def test_an_emulator_that_is_not_installed(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = tmp_path / "server.py"
    server.write_text("import no_such_emulator\n")
    monkeypatch.setattr(program, "SERVER", server)
    ended = called(program.main, "--mebibytes=1")
    assert ended.returncode == 2
    assert "the emulator of a bucket does not start: ModuleNotFoundError: No module named 'no_" in ended.stderr


def test_an_unknown_flag(program: ModuleType) -> None:
    ended = called(program.main, "--megabytes=1")
    assert ended.returncode == 2
    assert "--megabytes" in ended.stderr
