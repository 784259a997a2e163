"""The picture of an ablation: scores of every variant over its seeds, differences to the full method, and costs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from r2d2_jax.plots.style import COLOURS, GREY, legend, panels, save

# Stage in the document -> colour, and how far from the row's middle it is drawn.
_STAGES = {"dual": (COLOURS[0], -0.16), "second": (COLOURS[1], 0.16), "last": (COLOURS[1], 0.16)}


def draw_ablation(document: Mapping[str, Any], path: Path) -> Path:
    """A row for each variant in every panel: means with their spread and the runs as dots, differences with their 95 %
    intervals, multiply-adds and speed.

    Args:
        document: as `ablation.table.ablation_document` gives it.
        path: the PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    scores, variants = document["scores"], document["variants"]
    titles = [f"{score['title']}, %" for score in scores.values()]
    named = [f"{score['title']}: difference to the full method, points" for score in scores.values()]
    differences = named if len(variants) > 1 else []
    figure, axes = panels([*titles, *differences, "relative to the full method"])
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, max(height, (0.32 * len(variants) + 1.1) * height / 2.9))
    for key, panel in zip(scores, axes, strict=False):
        for row, found in enumerate(variants.values()):
            _means(panel, row, found["scores"][key])
    for key, panel in zip(scores if differences else (), axes[len(scores) :], strict=False):
        panel.axvline(0, color=GREY, linewidth=0.8)
        for row, found in enumerate(variants.values()):
            _intervals(panel, row, found["differences"].get(key, {}))
    _costs(axes[-1], variants)
    for panel in axes:
        panel.set_yticks(range(len(variants)), list(variants))
        panel.set_ylim(len(variants) - 0.5, -0.5)
    second = " or ".join(dict.fromkeys(score["second"] for score in scores.values()))
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none"}
    square: dict[str, Any] = {"marker": "s", "linestyle": "none"}
    legend(
        figure,
        [
            ("dual encoder", {"color": _STAGES["dual"][0], **dot}),
            (f"{second}; of differences the last stage", {"color": _STAGES["second"][0], **dot}),
            *((words, {"color": colour, **square}) for words, colour, _ in _COSTS.values()),
        ],
    )
    return save(figure, path)


def _drawn(
    row: int, by_stage: Mapping[str, Any], stages: tuple[str, str]
) -> Iterator[tuple[dict[str, Any], str, float]]:
    """Summary, colour and height of each of the stages that was measured."""
    for stage in stages:
        if (summary := by_stage.get(stage)) is not None:
            colour, above = _STAGES[stage]
            yield summary, colour, row + above


def _means(panel: Axes, row: int, by_stage: Mapping[str, Any]) -> None:
    for summary, colour, y in _drawn(row, by_stage, ("dual", "second")):
        values = list(summary["values"].values())
        spread = summary["spread"] or 0.0
        panel.errorbar(
            summary["mean"], y, xerr=spread, color=colour, marker="|", markersize=9, capsize=3, linewidth=1.3
        )
        panel.plot(values, [y] * len(values), "o", color=colour, markersize=3, alpha=0.5)


def _intervals(panel: Axes, row: int, by_stage: Mapping[str, Any]) -> None:
    for summary, colour, y in _drawn(row, by_stage, ("dual", "last")):
        low, high = summary["interval"] or (summary["mean"],) * 2
        panel.plot([low, high], [y, y], color=colour, linewidth=1.3, marker="|", markersize=5)
        panel.plot(summary["mean"], y, "o", color=colour, markersize=4)


# Key of the document -> words of the legend, colour, and how far from the row's middle it is drawn.
_COSTS = {
    "relative_multiply_adds": ("multiply-adds per pair", COLOURS[2], -0.12),
    "relative_speed": ("steps per second", COLOURS[3], 0.12),
}


def _costs(panel: Axes, variants: Mapping[str, Any]) -> None:
    panel.axvline(1, color=GREY, linewidth=0.8)
    for key, (_, colour, above) in _COSTS.items():
        known = {row: found[key] for row, found in enumerate(variants.values()) if found[key] is not None}
        panel.plot(list(known.values()), [row + above for row in known], "s", color=colour, markersize=5)
