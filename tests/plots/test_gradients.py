"""The picture of what each term of the loss weighs."""

from pathlib import Path
from typing import Any

import numpy as np
from small_logs import MakeRun, evaluation_line, gradient_values, training_lines

from r2d2_jax.plots.curves import draw_runs
from r2d2_jax.plots.gradients import gradients
from r2d2_jax.plots.run_log import read_runs
from r2d2_jax.plots.style import COLOURS


def weighed(steps: int, every: int = 1) -> list[dict[str, Any]]:
    """Lines of which every so many have gradients."""
    return [
        line | (gradient_values(line["step"]) if line["step"] % every == 0 else {}) for line in training_lines(steps)
    ]


def test_a_panel_for_each_part_and_a_line_for_each_term_that_reaches_it(make_run: MakeRun) -> None:
    figure = gradients(read_runs([make_run("run", [*weighed(8, every=2), evaluation_line(8, 20.0)])]))
    assert figure is not None
    features, tower = figure.axes
    assert features.get_title() == "norm of the gradient in the text features"
    assert tower.get_title() == "norm of the gradient in the text tower"
    assert features.get_yscale() == tower.get_yscale() == "log"
    numbers = [label.get_text() for label in tower.get_yticklabels(which="both") if label.get_text()]
    assert len(numbers) >= 3
    assert all(float(number) > 0 for number in numbers), "plain numbers, no formulas"
    colours = {"mlm": COLOURS[0], "tgd": COLOURS[1], "loss": COLOURS[6]}
    drawn = {line.get_color(): line for line in tower.get_lines()}
    assert set(drawn) == set(colours.values())
    np.testing.assert_allclose(drawn[colours["tgd"]].get_xdata(), np.array([2, 4, 6, 8]) / 4)
    np.testing.assert_allclose(drawn[colours["tgd"]].get_ydata(), [4, 8, 12, 16])
    with_points = [line for line in features.get_lines() if len(line.get_xdata())]
    assert {line.get_color() for line in with_points} == {colours["tgd"], colours["loss"]}, "MLM reads no feature"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MLM", "TGD", "all terms"]


def test_several_runs_are_told_apart_by_dashes(make_run: MakeRun) -> None:
    lines_of = {"a": weighed(4), "b": weighed(4), "c": training_lines(2)}
    figure = gradients(read_runs([make_run(name, lines) for name, lines in lines_of.items()]))
    assert figure is not None
    lines = [line for line in figure.axes[1].get_lines() if line.get_color() == COLOURS[0]]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-3:] == ["a", "b", "c"]


def test_gradients_are_in_no_other_picture(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, lines) for name, lines in (("with", weighed(4)), ("without", training_lines(4)))]
    assert gradients(read_runs(runs[1:])) is None
    names = [{path.name for path in draw_runs([run], tmp_path / f"pictures{place}")} for place, run in enumerate(runs)]
    assert names[0] - names[1] == {"gradients.png"}
    assert names[1] == {"losses.png", "accuracies.png", "optimisation.png", "speed.png"}
