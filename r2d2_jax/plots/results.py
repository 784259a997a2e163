"""Pictures of one evaluation: recalls with intervals, a confusion matrix, and how a match score separates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2d2_jax.arrays import Bool, Float, Int, checked
from r2d2_jax.plots.curves import RECALLS, STAGES
from r2d2_jax.plots.style import COLOURS, GREY, PANEL_HEIGHT, legend, panels, save

CHANCE = "chance"
MOST_NAMES, MOST_NUMBERS = 60, 24  # classes up to which a confusion matrix has names at its sides, and numbers within
BINS, MARGIN = 40, 0.005  # of a histogram of probabilities; what is added at its ends, so that equal ones are a bar


def draw_results(document: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """The pictures of what `evaluation.measure` has measured.

    Args:
        document, arrays: of a `Measurement`.
        folder: of the PNG files; made if it is not there.

    Raises:
        UserError: a file cannot be written.
    """
    figures = document["figures"]
    if "confusion" in arrays:
        names = [each["name"] for each in document["classes"]]
        return [draw_confusion(arrays["confusion"], names, folder / "confusion.png")]
    if "match" in arrays:
        threshold = figures["match"]["threshold"]
        return [draw_matching(arrays["probability"], arrays["match"], folder / "matching.png", threshold)]
    return [draw_recalls(figures, folder / "recalls.png", document["intervals"])]


def draw_recalls(
    stages: Mapping[str, Mapping[str, float]],
    path: Path,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Path:
    """Recall at 1, 5 and 10 both ways of each stage, with its interval, and chance.

    Args:
        stages: "dual", "cross", "reranked", "chance" -> "i2t_r1" and its like -> per cent. What is absent is left out.
        path: the PNG file.
        intervals: stage -> name -> lower and upper end, per cent.

    Raises:
        UserError: the file cannot be written.
    """
    names = [name for name in RECALLS if any(name in recalls for recalls in stages.values())]
    figure, (panel,) = panels(["recall, %" + (", with 95 % intervals" if intervals else "")])
    figure.set_size_inches(7, 0.55 * len(names) + 1.2)
    drawn = [stage for stage in STAGES if stages.get(stage)]
    lines: list[tuple[str, dict[str, Any]]] = []
    for number, stage in enumerate(drawn):
        look: dict[str, Any] = {"color": COLOURS[number], "marker": "o", "linestyle": "none"}
        for place, name in enumerate(names):
            if (value := stages[stage].get(name)) is not None:
                low, high = (intervals or {}).get(stage, {}).get(name, (value, value))
                y = place + 0.22 * (number - (len(drawn) - 1) / 2)
                panel.plot([low, high], [y, y], color=COLOURS[number], linewidth=1.2, marker="|", markersize=5)
                panel.plot(value, y, markersize=5, **look)
        lines.append((STAGES[stage][0], look))
    if chance := {place: stages[CHANCE][name] for place, name in enumerate(names) if name in stages.get(CHANCE, {})}:
        look = {"color": GREY, "marker": "|", "linestyle": "none", "markersize": 12}
        panel.plot(list(chance.values()), list(chance), **look)
        lines.append((CHANCE, look))
    panel.set_yticks(range(len(names)), [RECALLS[name].removesuffix(", %") for name in names])
    panel.invert_yaxis()
    panel.set_xlim(0, 101)
    legend(figure, lines)
    return save(figure, path)


@checked
def draw_confusion(counts: Int[np.ndarray, "c c"], names: Sequence[str], path: Path) -> Path:
    """How often a class (row) is taken for another (column), in per cent of the row.

    Args:
        counts: of true class by predicted class.
        names: of the classes.
        path: the PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    classes = len(counts)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, (panel,) = panels(["predicted class, % of the true class's images"])
    side = max(PANEL_HEIGHT, min(0.38 * classes, 14))
    figure.set_size_inches(side + 2, side + 1)
    panel.grid(visible=False)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=panel, shrink=0.7).ax.tick_params(labelsize=8)
    panel.set_ylabel("true class", fontsize=9)
    if classes <= MOST_NAMES:
        panel.set_yticks(range(classes), names)
        panel.set_xticks(range(classes), names, rotation=90)
    for row, column in np.argwhere(counts) if classes <= MOST_NUMBERS else ():
        colour = "white" if shares[row, column] > 60 else "black"
        panel.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return save(figure, path)


@checked
def draw_matching(score: Float[np.ndarray, " p"], label: Bool[np.ndarray, " p"], path: Path, threshold: float) -> Path:
    """The ROC curve of a match score, and how it is spread over pairs that match and pairs that do not.

    Args:
        score: match probability of each pair.
        label: whether image and text belong together; there are both kinds.
        path: the PNG file.
        threshold: from which score on a pair is said to match.

    Raises:
        UserError: the file cannot be written.
    """
    figure, (curve, spread) = panels(["ROC curve", "pairs by match probability"])
    shown = np.append(score[np.isfinite(score)], threshold)
    score = np.where(np.isnan(score), np.where(label, -np.inf, np.inf), score)  # as wrong as can be, as in the AUC
    values = np.unique(score)[::-1]  # equal scores are one step of the curve, however their pairs are ordered
    hits = [np.searchsorted(np.sort(-score[label]), -values, side="right") / label.sum()]
    alarms = [np.searchsorted(np.sort(-score[~label]), -values, side="right") / (~label).sum()]
    x, y = np.concatenate([[0.0], *alarms]), np.concatenate([[0.0], *hits])
    curve.plot(x, y, color=COLOURS[0], linewidth=1.5)
    curve.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    curve.text(0.97, 0.05, f"AUC {100 * np.trapezoid(y, x):.2f} %", ha="right", fontsize=10)
    curve.set_xlabel("share of the pairs that do not match", fontsize=8)
    curve.set_ylabel("share of the pairs that match", fontsize=8)
    edges = np.linspace(shown.min() - MARGIN, shown.max() + MARGIN, BINS + 1).tolist()
    looks: list[tuple[str, dict[str, Any]]] = []
    for number, (chosen, words) in enumerate(((label, "match"), (~label, "no match"))):
        look: dict[str, Any] = {"color": COLOURS[number]}
        spread.hist(score[chosen], edges, histtype="stepfilled", alpha=0.35, **look)
        spread.hist(score[chosen], edges, histtype="step", linewidth=1.3, **look)
        looks.append((words, look))
    spread.axvline(threshold, color=GREY, linewidth=1, linestyle="--")
    spread.set_xlabel("match probability", fontsize=8)
    spread.set_ylabel("pairs", fontsize=8)
    legend(figure, [*looks, (f"threshold {threshold:.3f}", {"color": GREY, "linestyle": "--"})])
    return save(figure, path)
