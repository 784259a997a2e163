"""Rows of panels of heat maps."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from r2d2_jax.plots import heat_maps
from r2d2_jax.plots.heat_maps import LINE_HEIGHT, PANELS_IN_A_ROW, STRENGTH, draw_heat_maps


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    found: list[Figure] = []
    monkeypatch.setattr(heat_maps, "save", lambda figure, path: found.append(figure) or path)
    return found


def test_the_picture_comes_first_and_then_a_panel_for_each_entity(figures: list[Figure]) -> None:
    picture, heat = np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40))
    heat[3, 5], heat[4, 6] = 0.75, 0.25
    draw_heat_maps(picture, [heat, np.zeros((20, 40))], ["熊猫", "竹子"], "一只熊猫在吃竹子", Path("x.png"))
    (figure,) = figures
    assert [panel.get_title() for panel in figure.axes] == ["", "熊猫", "竹子"]
    assert figure.get_suptitle() == "一只熊猫在吃竹子"
    assert [len(panel.get_images()) for panel in figure.axes] == [1, 2, 2]
    _, drawn = figure.axes[1].get_images()
    assert (drawn.get_array().max(), drawn.get_array()[4, 6]) == (1, pytest.approx(1 / 3))
    assert (drawn.get_alpha().max(), drawn.get_alpha().min()) == (STRENGTH, 0)
    assert not figure.axes[2].get_images()[1].get_alpha().any()


def test_long_titles_do_not_run_into_their_neighbours(figures: list[Figure]) -> None:
    picture, heat = np.zeros((20, 20, 3), np.uint8), [np.zeros((20, 20))] * 2
    for title in ("圆", 40 * "圆" + "\nCLS 3 %"):
        draw_heat_maps(picture, heat, [title, "b"], "c", Path("x.png"))
    short, long = figures
    assert long.axes[1].get_title().split("\n") == [15 * "圆", 15 * "圆", 10 * "圆", "CLS 3 %"]
    assert long.get_figheight() == pytest.approx(short.get_figheight() + 3 * LINE_HEIGHT)


def test_many_entities_take_several_rows(tmp_path: Path) -> None:
    picture, heat = np.full((30, 20, 3), 200, np.uint8), np.full((30, 20), 1 / 600)
    sizes = []
    for count in (1, PANELS_IN_A_ROW + 1):
        path = draw_heat_maps(picture, [heat] * count, ["a"] * count, "b" * 20, tmp_path / f"{count}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1]
