"""benchmarks/kill_and_resume.py: when it kills, what it compares, and where it fails."""

import dataclasses
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from programs import called, loaded_benchmark

from r2d2_jax.buckets.path import COMMITTED, BucketPath
from r2d2_jax.errors import UserError

EXPECTED = {"params/a": ("float32", b"1234"), "metrics.jsonl": [{"step": 1}], "evaluation.json": "{}"}


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    with loaded_benchmark("kill_and_resume") as module:
        yield module


def played(
    program: ModuleType, patch: pytest.MonkeyPatch, otherwise: dict[str, dict[str, Any]], *flags: str
) -> subprocess.CompletedProcess[str]:
    """The program with runs that train for no time; those of these names leave something behind otherwise."""
    place = program.path_or_bucket
    result = program.Result(0, 1.0, "any time", 4, 4, ())
    patch.setattr(program, "bucket", lambda: nullcontext({"BUCKET": "a-bucket"}))
    patch.setattr(program, "path_or_bucket", lambda given: BucketPath(given) if "://" in given else place(given))
    patch.setattr(program, "write_data", lambda data: None)
    patch.setattr(program, "undisturbed", lambda data, workdir: 2.0)
    patch.setattr(program, "left_behind", lambda workdir: EXPECTED | otherwise.get(str(workdir).split("/", 2)[2], {}))
    patch.setattr(
        program,
        "kill_once",
        lambda number, seconds, data, workdir, expected: dataclasses.replace(
            result, kill=number, differences=program.differences(workdir, expected)
        ),
    )
    return called(program.main, "--kills=3", *flags)


def test_all_equal_in_the_bucket(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = played(program, monkeypatch, {}, "--bucket")
    assert ended.returncode == 0, ended.stderr
    assert "undisturbed in the bucket: 2.0 s of training, equal\n" in ended.stdout
    assert ended.stdout.endswith("3 of 3 killed runs ended as the undisturbed one\n")


def test_one_that_differs(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"a-bucket/killed1": {"params/a": ("float32", b"1235"), "params/b": ("float32", b"")}}
    ended = played(program, monkeypatch, changed, "--bucket")
    assert ended.returncode == 1, ended.stderr
    assert "   1     1.00 s  any time        4             4  DIFFERENT: params/a, params/b\n" in ended.stdout
    assert ended.stdout.endswith("2 of 3 killed runs ended as the undisturbed one\n")


def test_an_undisturbed_one_that_differs_in_the_bucket(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = played(program, monkeypatch, {"a-bucket/undisturbed": {"evaluation.json": "{ }"}}, "--bucket")
    assert ended.returncode == 2
    assert "error: an undisturbed run in the bucket differs from that on the disk: evaluation.json\n" in ended.stderr


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_when_a_checkpoint_is_being_written(
    program: ModuleType, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    workdir = request.getfixturevalue("bucket") if place == "bucket" else tmp_path
    assert not program.is_saving(workdir)
    written = workdir / "checkpoints" / "4"
    unfinished = workdir / "checkpoints" / ("8" if place == "bucket" else "8.orbax-checkpoint-tmp-1")
    for folder in (written, unfinished):
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(b"")
    (written / COMMITTED).write_bytes(b"")
    assert program.is_saving(workdir)
    (unfinished / "state").unlink()
    if place == "disk":
        unfinished.rmdir()
    assert not program.is_saving(workdir)


def test_a_run_that_cannot_train(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("import sys\nsys.exit('error: no data')\n", encoding="utf-8")
    monkeypatch.setattr(program, "__file__", str(child))
    with pytest.raises(UserError, match="^a run ended before it trained:\nerror: no data\n$"):
        program.Child(tmp_path / "data", tmp_path / "run").await_training()


def test_an_unknown_flag(program: ModuleType) -> None:
    ended = called(program.main, "--buckets")
    assert ended.returncode == 2
    assert "--buckets" in ended.stderr
