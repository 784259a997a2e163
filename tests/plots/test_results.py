"""Pictures of one evaluation."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.matching import auc
from r2d2_jax.plots import results
from r2d2_jax.plots.results import draw_confusion, draw_matching, draw_recalls

NAMES = [f"{way}_r{cutoff}" for way in ("i2t", "t2i") for cutoff in (1, 5, 10)]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    found: list[Figure] = []
    monkeypatch.setattr(results, "save", lambda figure, path: found.append(figure) or path)
    return found


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_recalls_with_and_without_intervals(figures: list[Figure]) -> None:
    dual = dict(zip(NAMES, (10.0, 30.0, 50.0, 12.0, 32.0, 52.0), strict=True))
    text_to_image = {name: value + 20 for name, value in dual.items() if name.startswith("t2i")}
    stages = {"dual": dual, "reranked": text_to_image, "chance": dict.fromkeys(NAMES, 1.0)}
    draw_recalls(stages, Path("x.png"), {"dual": {"i2t_r1": (8.0, 12.5)}})
    draw_recalls({"dual": text_to_image}, Path("x.png"))
    first, second = figures
    assert texts(first) == ["dual encoder", "re-ranked", "chance"]
    drawn = [tuple(map(float, line.get_xdata())) for line in first.axes[0].get_lines()]
    assert (8.0, 12.5) in drawn
    assert {(value,) for value in (*dual.values(), *text_to_image.values())} <= set(drawn)
    assert [tick.get_text() for tick in second.axes[0].get_yticklabels()] == [
        f"text to image R@{n}" for n in (1, 5, 10)
    ]


def test_a_confusion_matrix_is_in_shares_of_its_rows(figures: list[Figure]) -> None:
    """A class without images has a row of nothing."""
    draw_confusion(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), ["玫瑰", "雏菊", "c"], Path("x.png"))
    (image,) = figures[0].axes[0].get_images()
    np.testing.assert_allclose(image.get_array(), [[75, 25, 0], [0, 100, 0], [0, 0, 0]])
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["75", "25", "100"]
    assert [tick.get_text() for tick in figures[0].axes[0].get_yticklabels()] == ["玫瑰", "雏菊", "c"]


def test_the_roc_curve_counts_ties_as_half(figures: list[Figure]) -> None:
    """Of the six pairs of a match and another, four are in order and one is tied: an AUC of 4.5 / 6."""
    score, label = np.array([0.9, 0.5, 0.5, 0.6, 0.1]), np.array([True, True, False, False, False])
    draw_matching(score, label, Path("x.png"), 0.55)
    curve, spread = figures[0].axes
    assert [text.get_text() for text in curve.texts] == ["AUC 75.00 %"]
    np.testing.assert_allclose(curve.get_lines()[0].get_xydata(), [[0, 0], [0, 0.5], [1 / 3, 0.5], [2 / 3, 1], [1, 1]])
    assert texts(figures[0]) == ["match", "no match", "threshold 0.550"]
    assert spread.get_title() == "pairs by match probability"


def test_nan_is_as_wrong_as_can_be(figures: list[Figure]) -> None:
    score, label = np.array([0.9, np.nan, 0.5, np.nan]), np.array([True, True, False, False])
    draw_matching(score, label, Path("x.png"), 0.55)
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["AUC 25.00 %"]
    assert auc(score, label) == 25


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        draw_recalls({"dual": dict.fromkeys(NAMES, 10.0)}, tmp_path / "file" / "x.png")
