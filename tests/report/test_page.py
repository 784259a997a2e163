"""The page: closed, escaped, and without what there is not."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import VOCABULARY, random_model
from small_data import encode
from small_model import MATCHING, small_config
from small_reports import Page

from r2d2_jax.evaluation.foil import FoilScores
from r2d2_jax.launch import convert, evaluate, visualize
from r2d2_jax.report.commands import commands
from r2d2_jax.report.findings import Findings, HeatMaps
from r2d2_jax.report.page import page
from r2d2_jax.report.shown import foils_section
from r2d2_jax.report.subject import Subject

EVIL = "<b>&\"'</b><script>alert(1)</script>"


def subject(path: Path, *changes: dict[str, Any], **fields: Any) -> Subject:
    """A run of a small model, of which nothing was measured."""
    model = random_model(layers=1, tokens=VOCABULARY)
    config = small_config(*changes).to_dict()
    own = {"task": config["task"], "data": [{"folder": EVIL, "split": "train"}], "initial": {"model": EVIL}}
    model = dataclasses.replace(model, lineage=(own | {"steps": 7, "pairs": 56},), notes=(EVIL,))
    return dataclasses.replace(Subject(str(path), path, path, model, config, {}, None, None, None), **fields)


def test_whatever_comes_from_outside_is_text(tmp_path: Path) -> None:
    run = tmp_path / EVIL.replace("/", "")
    figures = {f"validation/dual/{EVIL}": 1.25, "validation/dual/i2t_r1": 50.0}
    findings = Findings(maps=(HeatMaps(EVIL, (EVIL,), b"png"),), missing=(EVIL,))
    found = Page(page(subject(run, figures=figures, measured_at=7, missing=(EVIL,)), findings, {EVIL: b"png"}))
    assert found.images == 2
    assert found.text.count(EVIL) >= 5
    assert f"Report: {run}" in found.text


def test_a_matching_run_has_its_figures_and_nothing_of_retrieval(tmp_path: Path) -> None:
    figures = {"validation/match/auc": 91.26, "validation/dual/auc": 70.0, "validation/chance/auc": 50.0}
    figures |= {"test/match/auc": 90.04}
    found = Page(page(subject(tmp_path, MATCHING, figures=figures, measured_at=12), Findings(), {}))
    for text in ("fine-tuning for matching", "AUC", "91.3", "70.0", "90.0", "weights of step 12"):
        assert text in found.text
    for absent in ("R@", "Swapped pairs", "From a caption", "Where the model looks", "Curves", "retrieval:own"):
        assert absent not in found.text
    assert found.images == 0


def test_a_run_of_which_nothing_was_measured_has_no_such_section(tmp_path: Path) -> None:
    found = Page(page(subject(tmp_path), Findings(), {"losses": b"png", "speed": b"png"}))
    assert "How good it is" not in found.text
    assert "Curves" in found.text
    assert found.images == 2


def test_a_nan_is_no_right_choice_among_swapped_pairs() -> None:
    class Split:
        num_images, captions, image_ids = 1, ["红", "蓝"], ["a"]
        pairs = np.array([[0, 0], [0, 1]])

        def picture(self, image: int) -> bytes:
            return encode()

    scores = FoilScores(np.array([[np.nan, 0.0]]), None)
    text = Page(foils_section(Findings(foil_split=Split(), foils=scores))).text  # type: ignore[arg-type]
    assert "is chosen for 0 pictures and not for 1" in text
    assert "Wrong, 1 of 1" in text
    assert "Right" not in text


def test_commands_have_the_paths_of_the_run_quoted_and_flags_that_exist(tmp_path: Path) -> None:
    run = tmp_path / "my run; rm -rf $HOME 'x'"
    run.mkdir()
    (run / "status.json").write_text("{}")
    found = {words[0]: words[1:] for each in commands(subject(run), "红圆 & 方") if (words := shlex.split(each.line))}
    assert found["r2d2-status"] == found["r2d2-plot"] == [str(run)]
    assert f"--checkpoint={run}" in found["r2d2-evaluate"]
    assert "--split=validation" in found["r2d2-evaluate"]
    assert "--text=红圆 & 方" in found["r2d2-visualize"]
    assert {f"--config.initial.model={run}", "--config=retrieval:own"} <= set(found["r2d2-train"])
    visualize.parsed(found["r2d2-visualize"])
    for program, flags in (("evaluate", evaluate.FLAGS), ("convert", convert.FLAGS)):
        assert {word[2:].split("=")[0] for word in found[f"r2d2-{program}"]} <= set(flags)


@pytest.mark.parametrize("cross_layers", [0, 2])
def test_a_model_without_cross_encoders_is_fine_tuned_without_them(tmp_path: Path, cross_layers: int) -> None:
    model = random_model(layers=1, cross_layers=cross_layers, tokens=VOCABULARY)
    lines = [each.line for each in commands(subject(tmp_path, model=model), "红圆")]
    assert any("--config.retrieval.fgr=False" in line for line in lines) == (not cross_layers)
    assert any("r2d2-visualize" in line for line in lines) == bool(cross_layers)
