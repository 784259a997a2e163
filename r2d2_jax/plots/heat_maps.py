"""A picture and, beside it, where a model looks in it for each of several words."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from r2d2_jax.arrays import Float, UInt8, checked
from r2d2_jax.plots.style import DOTS, save

PANELS_IN_A_ROW, PANEL_SIDE, LINE_HEIGHT = 6, 2.4, 0.22  # the last two in inches
STRENGTH, FADING = 0.75, 0.5  # of the strongest heat over the picture, and how fast weaker heat lets it through
CAPTION_LINE, TITLE_LINE = 40, 15  # full-width characters above six panels, and above one


@checked
def draw_heat_maps(
    picture: UInt8[np.ndarray, "h w 3"],
    heat: Sequence[Float[np.ndarray, "h w"]],
    titles: Sequence[str],
    caption: str,
    path: Path,
) -> Path:
    """A row of panels, as in the article's figure: the picture, then the picture under each heat map.

    Args:
        picture: the picture.
        heat: maps over its pixels, of which the largest value of each becomes the brightest colour.
        titles: one for each map; long lines are broken.
        caption: stands above the panels.
        path: the PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    titles = ["\n".join(textwrap.fill(line, TITLE_LINE) for line in title.split("\n")) for title in titles]
    lines = max((1 + title.count("\n") for title in titles), default=0)
    figure = _figure(1 + len(heat), picture.shape[0] / picture.shape[1], lines, caption)
    rows = -(-(1 + len(heat)) // PANELS_IN_A_ROW)
    for place, title in enumerate(["", *titles]):
        panel = figure.add_subplot(rows, min(PANELS_IN_A_ROW, 1 + len(heat)), place + 1)
        panel.set_axis_off()
        panel.set_title(title, fontsize=11)
        panel.imshow(picture)
        if place:
            share = heat[place - 1] / (heat[place - 1].max() or 1)
            panel.imshow(share, cmap="jet", vmin=0, vmax=1, alpha=STRENGTH * share**FADING)
    return save(figure, path)


def _figure(panels: int, height_of_width: float, title_lines: int, caption: str) -> Figure:
    columns, rows = min(PANELS_IN_A_ROW, panels), -(-panels // PANELS_IN_A_ROW)
    height = PANEL_SIDE * min(max(height_of_width, 0.4), 2.5) + LINE_HEIGHT * title_lines
    title = textwrap.fill(caption, max(12, CAPTION_LINE * columns // PANELS_IN_A_ROW))
    above = 0.25 * (1 + title.count("\n"))
    figure = Figure(figsize=(PANEL_SIDE * columns, height * rows + above), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    return figure
