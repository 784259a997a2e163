"""Draws what the logs of runs say: losses, gradients of their terms,
accuracies, recalls, evaluation, optimisation and speed.

`python launch/plot.py runs/demo` draws into runs/demo/plots,
`python launch/plot.py runs/a runs/b --output=pictures` both runs in the same
pictures.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from r2d2_jax.errors import UserError
from r2d2_jax.launch.program import run
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.report import PICTURES

logger = logging.getLogger(__name__)


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
    if asked.output == "":
        raise UserError("--output is ''; expected a folder for the pictures")
    folders = [path_or_bucket(folder) for folder in asked.run]
    for path in draw(folders, path_or_bucket(asked.output) if asked.output else folders[0] / PICTURES):
        print(path)


def draw(folders: Sequence[Path], output: Path) -> list[Path]:
    """`draw_runs`, imported here: Matplotlib takes a second, and training has no use for it before its end."""
    from r2d2_jax.plots.curves import draw_runs

    return draw_runs(folders, output)


def drawn_at_the_end(pictures: Callable[[], object], folder: Path, subject: str) -> None:
    """Draws what another program has to show at its end, and says where.

    Without its pictures that program has ended well all the same, so a failure is a warning.

    Args:
        pictures: draws them.
        folder: where they will be.
        subject: what they show, such as "the run".

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, so that the program does not go on with what comes next.
    """
    logger.info("drawing the pictures of %s", subject)
    try:
        pictures()
    except (UserError, OSError) as error:  # Matplotlib, too, writes files when it is imported
        logger.warning("there are no pictures of %s: %s", subject, error)
    except KeyboardInterrupt:
        logger.warning(
            "stopped while the pictures were drawn; %s itself is complete, the same command draws them", subject
        )
        raise
    else:
        print(f"Pictures: {folder}")


if __name__ == "__main__":
    sys.exit(main())
