"""The picture of an ablation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from r2d2_jax.ablation.plan import Plan
from r2d2_jax.ablation.table import ablation_document
from r2d2_jax.plots import ablation
from r2d2_jax.plots.ablation import draw_ablation

PLAN = Plan({}, {"full": {}, "prd2": {"a": 1}, "later": {"b": 1}}, (0, 1))
RESULTS = {
    "full": {seed: {"foil/dual": 80.0 + seed, "foil/reranked": 90.0 + seed} for seed in (0, 1)},
    "prd2": {seed: {"foil/dual": 77.0 - seed} for seed in (0, 1)},
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn, before it is written."""
    drawn: list[Figure] = []
    save = ablation.save
    monkeypatch.setattr(ablation, "save", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    return drawn


def points(panel: Any) -> list[tuple[float, float]]:
    """Every point of every line, to a thousandth."""
    found = [line.get_xydata() for line in panel.lines]
    return [(round(float(x), 3), round(float(y), 2)) for x, y in np.concatenate(found)]


def test_each_variant_has_a_row(figures: list[Figure], tmp_path: Path) -> None:
    costs = {"variants": {"full": {"relative_speed": 1.0}, "prd2": {"relative_speed": 1.5}}}
    path = draw_ablation(ablation_document(PLAN, RESULTS, costs), tmp_path / "ablation.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    scores, differences, relative = figures[0].axes
    assert [label.get_text() for label in scores.get_yticklabels()] == ["full", "prd2", "later"]
    assert {(80.5, -0.16), (80.0, -0.16), (81.0, -0.16), (90.5, 0.16), (76.5, 0.84)} <= set(points(scores))
    assert not [y for _, y in points(scores) if y > 1]  # neither PRD2's re-ranking nor what is not done yet
    assert {(-4.0, 0.84), (-14.0, 1.16)} <= set(points(differences))  # by the dual encoder, and by the last stage
    assert {(1.5, 1.12)} <= set(points(relative))


def test_a_single_seed_and_nothing_but_the_full_method(figures: list[Figure], tmp_path: Path) -> None:
    document = ablation_document(Plan({}, {"full": {}}, (0,)), {"full": {0: RESULTS["full"][0]}}, {})
    draw_ablation(document, tmp_path / "ablation.png")
    assert len(figures[0].axes) == 2
