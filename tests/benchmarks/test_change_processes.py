"""benchmarks/change_processes.py: how it follows the parts of a run, what it compares, and where it fails."""

import copy
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from programs import called, loaded_benchmark

from r2d2_jax.errors import UserError

LEFT = {
    "params/a": ("float32", np.float32([3, 4]).tobytes()),
    "params/key/bias": ("float32", np.float32([1e-9]).tobytes()),
    "metrics.jsonl": [{"step": 2, "loss": 2.0, "accuracy": 0.0}],
    "evaluation.json": "{}",
}


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    with loaded_benchmark("change_processes") as module:
        yield module


def played(
    program: ModuleType, patch: pytest.MonkeyPatch, changing: dict[str, Any], images: Sequence[int] = range(96)
) -> subprocess.CompletedProcess[str]:
    """The program with runs of 12 steps whose epochs have these images, and that leave this behind where parts change.

    The last step of a part has begun the one after it, which is left out: the next part gives it again.
    """
    steps = 2 * [list(images[first : first + 16]) for first in range(0, 96, 16)]
    ends, begins = iter((5, 10, 12, 12)), iter((0, 5, 10, 0))

    def together(part: Any, data: Path, workdir: Path) -> list[dict[str, Any]]:
        step, begin, size = next(ends), next(begins), 16 // part.processes
        given = [
            [rows[number * size : (number + 1) * size] for rows in steps[begin : step + 1]]
            for number in range(part.processes)
        ]
        return [{"step": step, "finished": step == 12, "images": rows} for rows in given]

    patch.setattr(program, "write_data", lambda data: None)
    patch.setattr(program, "together", together)
    patch.setattr(program, "left_behind", lambda workdir: changing if workdir.name == "changing" else LEFT)
    return called(program.main)


def test_the_same_in_parts(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key biases, whose rounding errors alone differ, are not compared."""
    changing = LEFT | {"params/key/bias": ("float32", np.float32([-3e-9]).tobytes())}
    ended = played(program, monkeypatch, changing)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        "processes  mesh   ends after step\n"
        "        4  2 x 2                5\n"
        "        2  1 x 2               10\n"
        "        1  1 x 1               12\n"
        "        1  1 x 1               12\n"
        "largest relative difference: 0.0e+00 of a figure in the log, 0.0e+00 of an array of the state\n"
        "2 of 2 epochs have every image once\n"
    )


@pytest.mark.parametrize("what", ["figure", "array", "image"])
def test_what_differs_fails(program: ModuleType, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    changing, images = copy.deepcopy(LEFT), list(range(96))
    if what == "figure":
        changing["metrics.jsonl"][0]["loss"] = 2.0001  # type: ignore[index]
    if what == "array":
        changing["params/a"] = ("float32", np.float32([3, 4.001]).tobytes())
    if what == "image":
        images[95] = 0
    ended = played(program, monkeypatch, changing, images)
    assert ended.returncode == 1, ended.stderr
    said = {"figure": "5.0e-05 of a figure", "array": "2.0e-04 of an array", "image": "0 of 2 epochs"}
    assert said[what] in ended.stdout


def test_what_one_run_alone_has(program: ModuleType) -> None:
    with pytest.raises(UserError, match="^one run alone has params/b$"):
        program.differences(LEFT | {"params/b": ("float32", b"")}, LEFT)


def test_processes_that_end_at_different_steps(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [{"step": step, "finished": False, "images": []} for step in (5, 10)]
    monkeypatch.setattr(program, "together", lambda *_: ends)
    with pytest.raises(UserError, match=r"ended as \[\(5, False\), \(10, False\)\]"):
        program.followed(program.PARTS[:1], Path("data"), Path("run"))


def test_a_process_that_fails(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("import sys\nsys.exit('error: no data')\n", encoding="utf-8")
    monkeypatch.setattr(program, "__file__", str(child))
    with pytest.raises(UserError, match="(?s)^a process of .* ended with status 1; it printed:\nerror: no data\n$"):
        program.together(program.ALONE[0], tmp_path / "data", tmp_path / "run")


def test_the_configuration_of_a_part(program: ModuleType) -> None:
    config = program.config("data", 2, 2)
    assert (config.mesh.data, config.mesh.fsdp) == (2, 2)
    assert (config.train.epochs, config.train.checkpoint_every) == (2.0, 0)
    assert json.loads(json.dumps(vars(program.PARTS[0]))) == {"processes": 4, "data": 2, "fsdp": 2, "stop_before": 3}
