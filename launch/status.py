"""How runs are, seen from outside: step, speed, expected end, last error.

`python launch/status.py runs/a runs/b`
"""

import argparse
import sys
import time
from collections.abc import Sequence

from r2d2_jax.errors import UserError
from r2d2_jax.launch.program import run
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.status import STATUS, age, described, read_status

HEADER = ("run", "state", "steps", "pairs/s", "end of training", "last sign")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The runs to look at."""
    parser = argparse.ArgumentParser(description="How runs are, seen from outside.", allow_abbrev=False)
    parser.add_argument("run", nargs="+", help="The --workdir of one run or of several.")
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line for each run, and the last error of those that have one; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> None:
    now, rows, errors = time.time(), [HEADER], []
    for name in parsed(arguments).run:
        status = read_status(path_or_bucket(name))
        if status is None:
            raise UserError(f"{name} has no {STATUS}; expected the --workdir of a run that has started")
        rows.append((name, *described(status, now)))
        if status.error:
            errors.append(f"{name}, {age(now - (status.error_time or now))} ago: {status.error}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for error in errors:
        print(error)


if __name__ == "__main__":
    sys.exit(main())
