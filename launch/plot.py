"""Draws what the logs of runs say: losses, accuracies, recalls, evaluation,
optimisation and speed.

`python launch/plot.py runs/demo` draws into runs/demo/plots,
`python launch/plot.py runs/a runs/b --output=pictures` both runs in the same
pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from r2d2_jax.errors import UserError
from r2d2_jax.launch.program import run
from r2d2_jax.paths import user_path

PICTURES = "plots"  # the folder of a run's pictures in its own


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draws what the logs of runs say.", allow_abbrev=False)
    parser.add_argument("run", nargs="+", help="The --workdir of one run or of several.")
    parser.add_argument("--output", help="Folder of the pictures; by default `plots` in that of the run.")
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the pictures and prints their names; one that has nothing to show is left out. Returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> None:
    asked = parsed(arguments)
    if len(asked.run) > 1 and asked.output is None:
        raise UserError(f"{len(asked.run)} runs are named and no folder for the pictures; add --output=FOLDER")
    if asked.output is not None and (not asked.output or "://" in asked.output):
        raise UserError(f"--output is {asked.output!r}; expected a local or mounted folder for the pictures")
    folders = [user_path(folder) for folder in asked.run]
    for path in draw(folders, user_path(asked.output) if asked.output else folders[0] / PICTURES):
        print(path)


def draw(folders: Sequence[Path], output: Path) -> list[Path]:
    """`draw_runs`, imported here: Matplotlib takes a second, and training has no use for it before its end."""
    from r2d2_jax.plots.curves import draw_runs

    return draw_runs(folders, output)


if __name__ == "__main__":
    sys.exit(main())
