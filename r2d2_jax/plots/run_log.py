"""What a run's metrics.jsonl says, as lines to draw."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r2d2_jax.errors import UserError, first_line

LOG = "metrics.jsonl"
GRADIENT = "gradient/"  # begins the names of "gradient/TERM/PART", which steps have measured, too
MOST = 1e100  # no float32 comes near it, and axes cannot be divided far beyond it


@dataclass(frozen=True)
class Line:
    """Values [n] over epochs [n], in order; at least one."""

    epoch: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class RunLog:
    """The lines of a run by the names of the log, and the run's name in legends."""

    name: str
    lines: dict[str, Line]

    def evaluated(self) -> list[str]:
        """Names of what evaluations measured, such as "validation/dual/i2t_r1"."""
        return [name for name in self.lines if "/" in name and not name.startswith(GRADIENT)]

    def trained(self) -> list[str]:
        """Names of what steps measured, such as "loss"."""
        return [name for name in self.lines if "/" not in name]

    def gradients(self) -> dict[tuple[str, str], Line]:
        """Lines of norms of gradients by (term, part)."""
        names = [name for name in self.lines if name.startswith(GRADIENT) and name.count("/") == 2]
        return {(name.split("/")[1], name.split("/")[2]): self.lines[name] for name in names}


def read_runs(folders: Sequence[Path]) -> list[RunLog]:
    """The logs of several runs, under names that tell them apart.

    Raises:
        UserError: a folder is absent or no run's, or its log is empty, damaged or cannot be read.
    """
    return [RunLog(name, _lines(folder)) for folder, name in zip(folders, _short_names(folders), strict=True)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The end of each path that no other has: "demo", or "a/demo" and "b/demo"."""
    paths = [folder.resolve() for folder in folders]

    def end(path: Path, length: int) -> str:
        return "/".join(path.parts[-length:])

    def short(path: Path) -> str:
        others = [other for other in paths if other != path]
        lengths = range(1, len(path.parts) + 1)
        length = next((n for n in lengths if end(path, n) not in {end(other, n) for other in others}), 1)
        return end(path, length)

    return [short(path) for path in paths]


def _lines(folder: Path) -> dict[str, Line]:
    values = [parsed for text in _read(folder) if (parsed := _parsed(text)) is not None]
    per_step = next((line["epoch"] / line["step"] for line in values if line.get("epoch") and line["step"]), 1.0)
    points: dict[str, dict[float, float]] = {}
    for line in values:
        epoch = line.pop("step") * per_step
        line.pop("epoch", None)
        for name, value in line.items():
            points.setdefault(name, {})[epoch] = value  # of a step that is there twice, the later line
    if not points:
        raise UserError(
            f"{folder / LOG} has no line that can be drawn; it gets its first one after train.log_every steps"
        )
    return {name: _line(found) for name, found in points.items()}


def _line(points: dict[float, float]) -> Line:
    epochs = sorted(points)
    return Line(np.array(epochs), np.array([points[epoch] for epoch in epochs]))


def _read(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; expected the --workdir of a run")
    if not (folder / LOG).is_file():
        raise UserError(f"{folder} holds no {LOG}; expected the --workdir of a run that has made its first steps")
    try:
        return (folder / LOG).read_bytes().decode("utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {folder / LOG}: {first_line(error)}; mend the folder or name another") from error


def _parsed(text: str) -> dict[str, float] | None:
    """The numbers of a line; None if it is no whole one, as the last of a run that is at work may be."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    # NaN compares false, and an integer of any length can be compared but not made a float.
    numbers = {
        name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and abs(value) < MOST
    }
    return numbers if "step" in numbers else None
