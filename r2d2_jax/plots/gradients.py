"""What each term of the loss weighs over a run: a panel for each part of the model, a line for each term."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from r2d2_jax.plots.run_log import RunLog
from r2d2_jax.plots.style import COLOURS, DASHES, curve, legend, panels

SUM = "loss"  # the sum of all terms, drawn in black
TITLES = {
    "image_features": "the image features",
    "text_features": "the text features",
    "image_tower": "the image tower",
    "text_tower": "the text tower",
    "cross_encoders": "the cross encoders",
    "all": "all that is trained",
}


def gradients(runs: Sequence[RunLog]) -> Figure | None:
    """Norms of each term's gradient in each part on a logarithmic scale: a colour for each term, a dash for each run.

    A term that does not reach a part has no gradient there, and no line. None if no run has weighed its terms.
    """
    drawn = {place for run in runs for place, line in run.gradients().items() if (line.value > 0).any()}
    parts = [part for part in TITLES if any(part == found for _, found in drawn)]
    if not parts:
        return None
    terms = sorted({term for term, _ in drawn} - {SUM})
    looks: dict[str, dict[str, Any]] = {term: {"color": COLOURS[place % 6]} for place, term in enumerate(terms)}
    looks[SUM] = {"color": COLOURS[6]}
    figure, axes = panels([f"norm of the gradient in {TITLES[part]}" for part in parts])
    for part, panel in zip(parts, axes, strict=True):
        for number, run in enumerate(runs):
            for term, look in looks.items():
                line = run.gradients().get((term, part))
                if line is not None and (some := line.value > 0).any():
                    dash = DASHES[number % len(DASHES)]
                    curve(panel, line.epoch[some], line.value[some], linestyle=dash, **look)
        _logarithmic(panel)
        panel.set_xlabel("epoch", fontsize=8)
    lines = [("all terms" if term == SUM else term.upper(), look) for term, look in looks.items()]
    if len(runs) > 1:
        lines += [(run.name, {"color": COLOURS[6], "linestyle": DASHES[n % 4]}) for n, run in enumerate(runs)]
    legend(figure, lines)
    return figure


def _logarithmic(panel: Axes) -> None:
    """A logarithmic scale with plain numbers: Matplotlib's own are formulas, which `style.save` does not set."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
