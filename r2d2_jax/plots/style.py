"""What all pictures share: their size, colours, lines and legend, and how they reach the disk."""

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from r2d2_jax.atomic import written_whole
from r2d2_jax.plots.fonts import families_for

# Okabe and Ito's colours, which the colour-blind tell apart, without their yellow, too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
GREY = "#888888"
PANEL_WIDTH, PANEL_HEIGHT, DOTS = 4.2, 2.9, 110  # inches, and dots in each
SMOOTHED_FROM = 60  # points of a line from which on a smoothed one is drawn over it
FAINT = 0.25
LEGEND_LINE, LEGEND_MARGIN = 48, 0.7  # characters of a line of a legend; inches around each column of it


def panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, in rows of three, or of two where that leaves none empty."""
    columns = min(2 if len(titles) == 4 else 3, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(PANEL_WIDTH * columns, PANEL_HEIGHT * rows + 0.4), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(len(titles))]
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=10)
        plain(panel)
    return figure, axes


def plain(panel: Axes) -> None:
    """No frame but the two axes, small numbers, a pale grid behind the lines."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)


def colour_and_dash(number: int) -> dict[str, Any]:
    """Of one of several lines; beyond the colours the dashes change."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def curve(panel: Axes, x: np.ndarray, y: np.ndarray, *, noisy: bool = True, **line: Any) -> None:
    """A line; a noisy one of many points is drawn faint, with its moving average over it."""
    if len(x) < SMOOTHED_FROM or not noisy:
        panel.plot(x, y, linewidth=1.5, marker="o" if len(x) < SMOOTHED_FROM else None, markersize=2.5, **line)
        return
    panel.plot(x, y, linewidth=0.8, alpha=FAINT, color=line["color"])
    panel.plot(x, smoothed(y), linewidth=1.5, **line)


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, a twentieth of the line in all, and fewer near its ends."""
    reach = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach_here = np.minimum(reach, np.minimum(place, place[::-1]))  # as far to either side: the ends do not lag
    return (sums[place + reach_here + 1] - sums[place - reach_here]) / (2 * reach_here + 1)


def legend(figure: Figure, lines: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """A legend below the panels, of a name and a look for each line; none for a single line."""
    if len(lines) < 2:
        return
    # Drawn outside of the panels, so that it hides nothing.
    handles = [figure.axes[0].plot([], [], linewidth=1.5, **look)[0] for _, look in lines]
    names = [textwrap.fill(name, LEGEND_LINE, break_on_hyphens=False) for name, _ in lines]
    columns = max(1, min(4, int(figure.get_figwidth() / (LEGEND_MARGIN + max(map(_inches, names))))))
    figure.set_figheight(figure.get_figheight() + 0.2 * (len("\n".join(names).split("\n")) / columns - 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def _inches(name: str) -> float:
    """About how wide a name is in a legend: those of Chinese are twice as wide as Latin characters."""
    return max(sum(2 if ord(character) > 0x2E80 else 1 for character in line) for line in name.split("\n")) * 0.075


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all, in fonts that have the characters of its labels.

    Raises:
        UserError: the file cannot be written.
    """
    texts = figure.findobj(Text)
    families = families_for([text.get_text() for text in texts])
    for text in texts:
        text.set_fontfamily(families)
        text.set_parse_math(False)  # a dollar sign in the name of a run or a class is one
    with rc_context({"font.family": families, "axes.unicode_minus": True}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # `families_for` has said it once
        with written_whole(path) as unfinished:
            figure.savefig(unfinished, format="png", facecolor="white")
    return path
