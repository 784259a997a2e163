"""What the pictures of runs show."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from small_logs import MakeRun, evaluation_line, gradient_values, training_lines

from r2d2_jax.plots import curves
from r2d2_jax.plots.curves import PICTURES, draw_runs
from r2d2_jax.plots.style import COLOURS, smoothed


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that would be saved, by name; none is."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> Path:
        found[path.stem] = figure
        return path

    monkeypatch.setattr(curves, "save", keep)
    return found


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def names_in_legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_all_pictures_of_one_run(make_run: MakeRun, tmp_path: Path) -> None:
    lines = [line | gradient_values(line["step"]) for line in training_lines(4)]
    run = make_run("run", [*lines, evaluation_line(4, 20.0)])
    drawn = draw_runs([run], tmp_path / "new" / "folder")
    assert [path.name for path in drawn] == [f"{name}.png" for name in PICTURES]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            pixels = np.asarray(picture.convert("RGB"), int)
        assert (np.abs(pixels - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).any(), "a line in the first colour"
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in drawn)


def test_a_panel_for_each_metric_in_its_unit(make_run: MakeRun, figures: dict[str, Figure]) -> None:
    draw_runs([make_run("run", training_lines(4))], Path("nowhere"))
    assert {name: titles(figure) for name, figure in figures.items()} == {
        "losses": ["all terms, nats", "FGR, nats"],
        "accuracies": ["image to text: accuracy in training, %"],
        "optimisation": ["learning rate", "queue fill, %"],
        "speed": ["pairs per second", "time spent waiting for data, %"],
    }
    (line,) = figures["accuracies"].axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), 25.0)
    np.testing.assert_allclose(figures["speed"].axes[1].get_lines()[0].get_ydata(), 12.5)
    np.testing.assert_allclose(line.get_xdata(), np.arange(1, 5) / 4)
    assert not any(names_in_legend(figure) for figure in figures.values())


def test_several_runs_share_the_panels(make_run: MakeRun, figures: dict[str, Figure]) -> None:
    """One of them longer, and with a term of its own."""
    other = [line | {"matching": 0.3} for line in training_lines(8)]
    draw_runs([make_run("狗", training_lines(4)), make_run("b", other)], Path("nowhere"))
    losses = figures["losses"]
    assert titles(losses) == ["all terms, nats", "FGR, nats", "MATCHING, nats"]
    drawn = [[line for line in axes.get_lines() if len(line.get_xdata())] for axes in losses.axes]
    assert [[line.get_color() for line in lines] for lines in drawn] == [[*COLOURS[:2]], [*COLOURS[:2]], [COLOURS[1]]]
    assert names_in_legend(losses) == ["狗", "b"]


def test_any_name_of_a_run_is_in_the_legend_and_within_the_picture(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dollar signs are no formulas, an underscore hides nothing, and long names take fewer columns and more lines."""
    names, found = ["$\\frac$", "_hidden", "狗" * 20, "x" * 120], []
    saved = curves.save
    monkeypatch.setattr(curves, "save", lambda figure, path: found.append(figure) or saved(figure, path))
    draw_runs([make_run(name, training_lines(2)) for name in names], tmp_path)
    for figure in found:
        assert [name.replace("\n", "") for name in names_in_legend(figure)] == names
        low, high = figure.legends[0].get_window_extent().get_points()
        assert (low >= 0).all()
        assert (high <= figure.bbox.size).all()


def test_recalls_of_every_stage_and_the_test_split(make_run: MakeRun, figures: dict[str, Figure]) -> None:
    lines = [*training_lines(8), *(evaluation_line(step, recall) for step, recall in ((2, 10.0), (4, 30.0), (6, 20.0)))]
    lines += [evaluation_line(8, 25.0, "test"), {"step": 8, "foil/dual": 80.0}]
    draw_runs([make_run("run", lines)], Path("nowhere"))
    assert titles(figures["recalls"])[0] == "image to text R@1, %"
    assert len(figures["recalls"].axes) == 6
    evaluation = figures["evaluation"]
    assert titles(evaluation) == ["mean recall, %; best epoch marked", "true caption above its foil, dual encoder, %"]
    assert names_in_legend(evaluation) == ["dual encoder", "re-ranked", "chance", "test split"]
    rings = [line for line in evaluation.axes[0].get_lines() if line.get_fillstyle() == "none"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(1.0, 30.0), (1.0, 35.0)]
    stars = [line for line in evaluation.axes[0].get_lines() if line.get_marker() == "*" and len(line.get_xdata())]
    assert [line.get_ydata()[0] for line in stars] == [25.0, 30.0]


def test_long_noisy_lines_are_smoothed_over_faint_ones(make_run: MakeRun, figures: dict[str, Figure]) -> None:
    noise = np.random.default_rng(0).normal(size=400)
    lines = [line | {"loss": float(value)} for line, value in zip(training_lines(400), noise, strict=True)]
    draw_runs([make_run("run", lines)], Path("nowhere"))
    faint, smooth = figures["losses"].axes[0].get_lines()
    np.testing.assert_allclose(faint.get_ydata(), noise)
    assert faint.get_alpha() < 0.5
    assert np.std(smooth.get_ydata()) < 0.4 * np.std(noise)
    assert len(figures["optimisation"].axes[0].get_lines()) == 1, "a schedule has no noise"


def test_smoothing_keeps_straight_lines_and_both_ends() -> None:
    straight = np.arange(100.0) * 3 - 5
    np.testing.assert_allclose(smoothed(straight), straight)
