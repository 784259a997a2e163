"""README and pages name the files and configurations that exist, and the lines on checkpoints run as printed."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from programs import called
from random_models import SPECIAL_TOKENS, random_model

from r2d2_jax.convert.conversion import write_model
from r2d2_jax.convert.tensor_files import read_tensors
from r2d2_jax.presets import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_configuration_is_in_the_table_and_the_other_way_round() -> None:
    table = README[README.index("| config | what |") : README.index("`--config` takes a name")]
    named = set(re.findall(r"`(\w+\.py)", table))
    assert named == {path.name for path in (ROOT / "configs").glob("*.py")}


def test_every_path_that_is_named_exists() -> None:
    named = re.findall(r"\b(?:configs|launch|benchmarks|r2d2_jax)/[\w/]+\.py", README)
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_module_is_in_the_tree() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = design[design.index("r2d2_jax/  presets.py") : design.index("## A task")]
    _, *parts = re.split(r"^  (\w+)/ ", tree, flags=re.MULTILINE)
    described = dict(zip(parts[::2], parts[1::2], strict=True))
    for folder in (
        "ablation",
        "buckets",
        "config",
        "data",
        "evaluation",
        "losses",
        "planning",
        "plots",
        "preparation",
        "report",
        "search",
        "tasks",
        "train",
    ):
        modules = {path.stem for path in (ROOT / "r2d2_jax" / folder).glob("[!_]*.py")}
        assert modules <= set(re.findall(r"\w+", described[folder])), folder


def test_every_benchmark_is_in_its_table_and_the_other_way_round() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = page[page.index("| program | measures |") : page.index("## Train steps on one")]
    programs = [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert set(re.findall(r"^\| `(\w+\.py)`", table, re.MULTILINE)) == {path.name for path in programs}


def test_the_article_s_variants_are_named() -> None:
    table = README[README.index("| config | what |") : README.index("`--config` takes a name")]
    (row,) = (line for line in table.splitlines() if "`:without_et`" in line)
    assert re.findall(r":(\w+)", row) == list(VARIANTS)


def test_the_lines_on_checkpoints_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converts, matches and loads what the README says, with a small model in place of the published one."""
    characters = "乔丹投篮运球"
    model = random_model(tokens=(*SPECIAL_TOKENS, *characters))
    write_model(model, tmp_path / "r2d2_vitl.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(model.vocabulary or ()) + "\n", encoding="utf-8")
    Image.new("RGB", (60, 40), "orange").save(tmp_path / "photo.jpg")
    section = README[README.index("## Checkpoints in and out") : README.index("## Cost")]
    commands, code = re.findall(r"```(?:bash|python)\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = [run_command(line) for line in commands.splitlines()]
    assert read_tensors(tmp_path / "again.safetensors").keys() == read_tensors(tmp_path / "r2d2_vitl.pth").keys()
    assert sum(output.endswith("all stages agree\n") for output in printed) == commands.count("--verify") == 3
    matched = next(output for output in printed if "cosine" in output)
    names: dict[str, Any] = {}
    exec(code, names)
    for text, cosine, probability in zip(("投篮", "运球"), names["cosine"][0], names["probability"], strict=True):
        assert f"match {probability:.4f}  cosine {cosine:+.4f}  乔丹{text}" in matched


def run_command(line: str) -> str:
    program, *rest = shlex.split(line.removeprefix("python "))
    done = called(importlib.import_module(f"r2d2_jax.launch.{Path(program).stem}").main, *rest)
    assert done.returncode == 0, done.stderr
    return done.stdout
