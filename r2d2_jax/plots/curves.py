"""Seven pictures of one or several runs, from what their logs say."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2d2_jax.plots.gradients import gradients
from r2d2_jax.plots.run_log import RunLog, read_runs
from r2d2_jax.plots.style import GREY, colour_and_dash, curve, legend, panels, save

# Of what steps measure, everything that is neither an accuracy nor one of these is a term of the loss.
OPTIMISATION = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm before clipping",
    "temperature": "temperature of the similarities",
    "teacher_gap": "teacher gap, % of the student's norm",
    "queue_fill": "queue fill, %",
    "soft_target_share": "teacher's share of the target, %",
    "fgd_weight": "weight of FgD, %",
}
RAMPS = ("soft_target_share", "fgd_weight")
SPEED = {"pairs_per_second": "pairs per second", "data_wait_share": "time spent waiting for data, %"}
SHARES = (*RAMPS, "teacher_gap", "queue_fill", "data_wait_share")  # logged from 0 to 1
NOT_NOISY = (*RAMPS, "learning_rate", "temperature", "teacher_gap", "queue_fill")
NO_CURVE = ("broken_records",)
WORDS = {"i2t": "image to text", "t2i": "text to image", "mlm": "MLM", "no_match": "no match"}
FOILS = {
    "foil/dual": "true caption above its foil, dual encoder, %",
    "foil/reranked": "true caption above its foil, re-ranked, %",
    "foil/match": "true caption above its foil, match alone, %",
}
RECALLS = {
    f"{way}_r{cutoff}": f"{words} R@{cutoff}, %"
    for way, words in (("i2t", "image to text"), ("t2i", "text to image"))
    for cutoff in (1, 5, 10)
}
# Name, and look: also where a stage was measured once, so that it is a point and no line.
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "dual": ("dual encoder", {"linestyle": "--", "marker": "o", "markersize": 3.5}),
    "cross": ("cross encoders", {"linestyle": ":", "marker": "^", "markersize": 4.5}),
    "reranked": ("re-ranked", {"linestyle": "-", "marker": "s", "markersize": 4}),
}
# The order of accuracies; others follow as they are logged.
ACCURACIES = ("i2t_accuracy", "t2i_accuracy", "match_accuracy", "no_match_accuracy", "mlm_accuracy")
MEAN, CHANCE, TEST = "mean", "chance", "test"


def draw_runs(folders: Sequence[Path], output: Path) -> list[Path]:
    """Draws losses, gradients of terms, accuracies, recalls, evaluation, optimisation and speed of one or several runs.

    A picture of which no run has anything, as of recalls without a validation split, is left out.

    Args:
        folders: the --workdir of each run.
        output: the folder of the pictures; made if it is not there.

    Returns:
        The PNG files.

    Raises:
        UserError: a folder is no run's, or the pictures cannot be written.
    """
    runs = read_runs(folders)
    figures = ((name, draw(runs)) for name, draw in PICTURES.items())
    return [save(figure, output / f"{name}.png") for name, figure in figures if figure is not None]


def _losses(runs: Sequence[RunLog]) -> Figure | None:
    other = {*OPTIMISATION, *SPEED, *NO_CURVE}
    names = [name for name in _all(run.trained() for run in runs) if name not in other and not _is_accuracy(name)]
    names.sort(key=lambda name: name != "loss")  # the sum first
    return _training(runs, {name: "all terms, nats" if name == "loss" else f"{name.upper()}, nats" for name in names})


def _accuracies(runs: Sequence[RunLog]) -> Figure | None:
    found = [name for name in _all(run.trained() for run in runs) if _is_accuracy(name)]
    names = [name for name in ACCURACIES if name in found] + [name for name in found if name not in ACCURACIES]
    of = {name: name.removesuffix("_accuracy") for name in names}
    titles = {name: f"{WORDS.get(of[name], of[name].replace('_', ' '))}: accuracy in training, %" for name in names}
    return _training(runs, titles, shares=names)


def _is_accuracy(name: str) -> bool:
    return name.endswith("accuracy")


def _training(runs: Sequence[RunLog], titles: dict[str, str], shares: Iterable[str] = SHARES) -> Figure | None:
    """A panel for each of these metrics that a run has, with a line for each run."""
    titles = {name: title for name, title in titles.items() if any(name in run.lines for run in runs)}
    if not titles:
        return None
    figure, axes = panels(list(titles.values()))
    for name, panel in zip(titles, axes, strict=True):
        for number, run in enumerate(runs):
            if line := run.lines.get(name):
                values, look = line.value * (100 if name in shares else 1), colour_and_dash(number)
                curve(panel, line.epoch, values, noisy=name not in NOT_NOISY, **look)
        if name in SPEED:
            panel.set_ylim(bottom=0)
        panel.set_xlabel("epoch", fontsize=8)
    legend(figure, [(run.name, colour_and_dash(number)) for number, run in enumerate(runs)])
    return figure


def _recalls(runs: Sequence[RunLog]) -> Figure | None:
    """Recall at 1, 5 and 10 both ways, of every stage that was measured, and chance."""
    names = [name for name in RECALLS if any(_of_stages(run, name) for run in runs)]
    if not names:
        return None
    figure, axes = panels([RECALLS[name] for name in names])
    for name, panel in zip(names, axes, strict=True):
        _evaluation_lines(panel, runs, name)
    _evaluation_legend(figure, runs, names)
    return figure


def _evaluation(runs: Sequence[RunLog]) -> Figure | None:
    """The mean of all recalls, the best epoch marked and the test split beside; and whatever else was measured."""
    other = [name for name in _all(run.evaluated() for run in runs) if not _is_recall(name)]
    titles = {name: FOILS.get(name, f"{name.replace('/', ', ').replace('_', ' ')}, %") for name in other}
    means = any(_of_stages(run, MEAN) for run in runs)
    if not means and not titles:
        return None
    figure, axes = panels([*(["mean recall, %; best epoch marked"] if means else []), *titles.values()])
    if means:
        _evaluation_lines(axes[0], runs, MEAN, mark_best=True)
    for name, panel in zip(titles, axes[means:], strict=True):
        for number, run in enumerate(runs):
            if line := run.lines.get(name):
                curve(panel, line.epoch, line.value, **colour_and_dash(number))
        panel.set_xlabel("epoch", fontsize=8)
        panel.set_xlim(left=0)
    _evaluation_legend(figure, runs, [MEAN] if means else [])
    return figure


def _evaluation_lines(panel: Axes, runs: Sequence[RunLog], name: str, *, mark_best: bool = False) -> None:
    for number, run in enumerate(runs):
        for (split, stage), line in _of_stages(run, name).items():
            colour = colour_and_dash(number)["color"]
            if stage == CHANCE:
                panel.plot(line.epoch, line.value, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
            elif split == TEST:
                panel.plot(line.epoch, line.value, color=colour, marker="*", markersize=11, linestyle="none")
            else:
                panel.plot(line.epoch, line.value, color=colour, **STAGES[stage][1])
                if mark_best and len(line.value) > 1:
                    best = line.value.argmax()
                    panel.plot(line.epoch[best], line.value[best], "o", color=colour, markersize=10, fillstyle="none")
    panel.set_xlabel("epoch", fontsize=8)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)


def _evaluation_legend(figure: Figure, runs: Sequence[RunLog], names: Sequence[str]) -> None:
    """Runs by their colours, then stages by their dashes and marks, as far as they are drawn."""
    found = {place for run in runs for name in names for place in _of_stages(run, name)}
    lines: list[tuple[str, dict[str, Any]]] = []
    if len(runs) > 1:
        lines += [(run.name, {"color": colour_and_dash(number)["color"]}) for number, run in enumerate(runs)]
    colour = "black" if len(runs) > 1 else colour_and_dash(0)["color"]
    drawn = {stage for split, stage in found if split != TEST}
    lines += [(words, {"color": colour, **look}) for stage, (words, look) in STAGES.items() if stage in drawn]
    if CHANCE in drawn:
        lines.append(("chance", {"color": GREY, "linestyle": (0, (1, 2))}))
    if any(split == TEST for split, _ in found):
        lines.append(("test split", {"color": colour, "marker": "*", "linestyle": "none", "markersize": 11}))
    legend(figure, lines)


def _is_recall(name: str) -> bool:
    split_and_stage = name.split("/")[:-1]
    return len(split_and_stage) == 2 and (split_and_stage[1] in STAGES or split_and_stage[1] == CHANCE)


def _of_stages(run: RunLog, name: str) -> dict[tuple[str, str], Any]:
    """The lines of one recall by split and stage."""
    ends = [found.split("/") for found in run.evaluated() if _is_recall(found)]
    return {(split, stage): run.lines[f"{split}/{stage}/{end}"] for split, stage, end in ends if end == name}


def _all(names: Iterable[Iterable[str]]) -> list[str]:
    """Every name once, in the order in which they first come."""
    return list(dict.fromkeys(name for several in names for name in several))


PICTURES: dict[str, Callable[[Sequence[RunLog]], Figure | None]] = {
    "losses": _losses,
    "gradients": gradients,
    "accuracies": _accuracies,
    "recalls": _recalls,
    "evaluation": _evaluation,
    "optimisation": lambda runs: _training(runs, OPTIMISATION),
    "speed": lambda runs: _training(runs, SPEED),
}
