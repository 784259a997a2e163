"""docs/finetuning.md: its six commands run exactly as they are printed, and its other commands have what they name."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from programs import called
from random_models import VOCABULARY, random_model
from small_corpora import write
from small_data import encode

from r2d2_jax.convert.conversion import write_model
from r2d2_jax.launch.configuration import read_configuration

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "finetuning.md").read_text(encoding="utf-8")
LINES = [line.strip() for block in re.findall(r"```bash\n(.*?)\n *```", PAGE, re.DOTALL) for line in block.splitlines()]
SIX = re.findall(r"^## \d\. .*?```bash\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
PICTURES = {"train": 32, "validation": 3, "test": 4}  # 32: a batch of the page's configuration, so one step an epoch


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page begins with, by its names there: photos, captions, and a published file with its vocabulary."""
    (tmp_path / "photos").mkdir()
    splits = [split for split, count in PICTURES.items() for _ in range(count)]
    lines = []
    for number, split in enumerate(splits):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encode(seed=number))
        captions = [caption(number), caption(number + 99)]
        lines.append(json.dumps({"image": f"{number}.jpg", "captions": captions, "split": split}, ensure_ascii=False))
    write(tmp_path / "captions.jsonl", *lines)
    write(tmp_path / "vocab.txt", *VOCABULARY)
    write_model(random_model(layers=1, cross_layers=1, tokens=VOCABULARY), tmp_path / "r2d2_vitl.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def caption(number: int) -> str:
    """Three characters of the vocabulary, others for each number below 216."""
    return "".join("红蓝圆方大小"[number // 6**place % 6] for place in range(3))


def run(line: str) -> str:
    program, *arguments = shlex.split(line.removeprefix("python "))
    done = called(importlib.import_module(f"r2d2_jax.launch.{Path(program).stem}").main, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_six_commands_run_as_printed(folder: Path) -> None:
    prepare, check, before, train, after, export = SIX
    assert re.search(r"train +32 +64 +0 ", run(prepare))
    assert "error" not in run(check)
    assert "training not recorded: r2d2_vitl.pth" in run(before)
    trained = run(train)
    scores = [float(score) for score in re.findall(r"^ +\d+ +\d+ +([\d.]+)(?:  chosen|$)", trained, re.MULTILINE)]
    assert len(scores) == 20
    best = re.search(r"^ +\d+ +(\d+) +([\d.]+)  chosen: these weights are measured below", trained, re.MULTILINE)
    assert best is not None
    assert float(best[2]) == max(scores)
    assert {path.name for path in (folder / "runs/mine/plots").glob("*.png")} >= {"losses.png", "recalls.png"}
    assert "Pictures: after.plots" in run(after)
    measured = json.loads((folder / "after.json").read_text(encoding="utf-8"))
    (whence, tuned) = measured["checkpoint"]["lineage"]
    assert (tuned["task"], measured["counts"]["images"], measured["counts"]["texts"]) == ("retrieval", 4, 8)
    assert f"step {best[1]}" in " ".join(measured["checkpoint"]["notes"])
    assert run(export).endswith("all stages agree\n")


def test_what_the_other_commands_name_exists() -> None:
    others = [shlex.split(line) for line in LINES if line not in SIX]
    trainings = [words[2:] for words in others if words[1] == "launch/main.py"]
    assert len(trainings) > 2
    for words in trainings:
        (named,) = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        read_configuration(named, [word for word in words if word.startswith("--config.")])
