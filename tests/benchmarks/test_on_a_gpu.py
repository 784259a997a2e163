"""benchmarks/on_a_gpu.py: what it leaves, and what it says of benchmarks that fail or for which no time is left."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from programs import ROOT, called, loaded_benchmark

GOOD = """
import os, pathlib, sys
print("with", *sys.argv[1:-1], os.environ["XLA_FLAGS"])
pathlib.Path(sys.argv[-1].removeprefix("--json=")).write_text("{}")
"""


@pytest.fixture(scope="module")
def on_a_gpu() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("on_a_gpu") as module:
        yield module


def stand_ins(patch: pytest.MonkeyPatch, on_a_gpu: ModuleType, folder: Path, **programs: str) -> str:
    """Puts programs of this text in the place of benchmarks; the flag that asks for all of them."""
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        patch.setitem(on_a_gpu.MEASUREMENTS, name, f"{folder / name}.py --config={{0}} --pairs={{1}}")
    return f"--only={','.join(programs)}"


def test_each_leaves_its_output_and_its_json(
    on_a_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only = stand_ins(monkeypatch, on_a_gpu, tmp_path, first=GOOD, second=GOOD)
    output = tmp_path / "new" / "gpu"
    ended = called(on_a_gpu.main, only, f"--output={output}", "--config=demo", "--pairs=8")
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["first", "second"]
    assert (output / "second.txt").read_text(encoding="utf-8").startswith("with --config=demo --pairs=8 --xla_gpu")
    assert (output / "first.json").read_text(encoding="utf-8") == "{}"


def test_failures_and_the_end_of_the_time_are_told(
    on_a_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hangs = "import time\ntime.sleep(60)\n"
    only = stand_ins(monkeypatch, on_a_gpu, tmp_path, bad="raise SystemExit(3)", hangs=hangs, last=GOOD)
    ended = called(on_a_gpu.main, only, f"--output={tmp_path}", "--seconds=6")
    assert ended.returncode == 1
    outcomes = [re.split(r" s  ", line)[1] for line in ended.stdout.splitlines()]
    assert outcomes[0] == "failed with status 3"
    assert re.fullmatch(r"stopped after \d+ s: no time left", outcomes[1])
    assert outcomes[2] == "no time left"
    assert not (tmp_path / "last.json").exists()


def test_an_unknown_benchmark_is_refused(on_a_gpu: ModuleType, tmp_path: Path) -> None:
    ended = called(on_a_gpu.main, "--only=speed", f"--output={tmp_path}")
    assert ended.returncode == 2
    assert "--only=speed: expected of train_step, where_time_goes" in ended.stderr


def test_the_benchmarks_have_the_flags_that_they_are_given(on_a_gpu: ModuleType) -> None:
    for command in on_a_gpu.MEASUREMENTS.values():
        program = (ROOT / command.split()[0]).read_text(encoding="utf-8")
        for flag in (*re.findall(r"--(\w+)", command), "json"):
            assert f'"{flag}"' in program or (flag == "config" and "config_flag(" in program), (command, flag)
