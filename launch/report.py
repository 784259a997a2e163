"""Writes what a run has learned as one HTML page, to be looked at: what was
trained, figures, curves, answers that are right and wrong, heat maps.

`python launch/report.py runs/demo` writes runs/demo/report.html. A file that
launch/evaluate.py --json=FILE wrote may stand in the place of the run.
docs/report.md says what is on the page.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from r2d2_jax.atomic import check_writable
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.launch.program import run
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.report import REPORT

logger = logging.getLogger(__name__)

HTML = ".html"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Writes what a run has learned as one HTML page, to be looked at.", allow_abbrev=False
    )
    parser.add_argument("run", help="The --workdir of a run, or a file that launch/evaluate.py --json=FILE wrote.")
    parser.add_argument(
        "--output", help="The HTML file; by default report.html in the run, FILE.html beside FILE.json."
    )
    parser.add_argument(
        "--queries",
        type=int,
        default=1000,
        help="How many captions, and pictures, are re-ranked at most, at even distances (default: %(default)s).",
    )
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and prints its name; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> None:
    asked = parsed(arguments)
    if asked.queries < 1:
        raise UserError(f"--queries is {asked.queries}; expected 1 or more")
    subject = path_or_bucket(asked.run)
    output = _output(asked.output, subject)
    from r2d2_jax.report.writing import write_report  # JAX takes seconds

    logger.info("opening %s", asked.run)
    write_report(subject, output, asked.queries)
    print(f"Report: {output}")


def _output(given: str | None, subject: Path) -> Path:
    """The file to write, checked before any work is done.

    Raises:
        UserError: it is no HTML file, or cannot be written.
    """
    if given is None:
        output = subject / REPORT if subject.is_dir() else subject.with_suffix(HTML)
    else:
        output = path_or_bucket(given)
    if output.suffix.lower() != HTML:
        raise UserError(f"--output is {given!r}; expected a name that ends in {HTML}")
    if not subject.exists():  # which is then the message
        return output
    try:
        check_writable(output)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {output}: {error.strerror}; name a file in a folder that can be written "
            f"to with --output=FILE{HTML}"
        ) from error
    return output


def report_command(workdir: Path) -> str:
    """The command that writes the report of a run, for a shell."""
    return f"r2d2-report {shlex.quote(str(workdir))}"


def report_at_the_end(workdir: Path) -> None:
    """Writes the report of a run that has just ended, and says where.

    Without it the run has ended well all the same: what fails is a warning, and a mistake of ours a traceback beside.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, of which the exit status must tell.
    """
    output = workdir / REPORT
    logger.info("writing the report of the run")
    try:
        from r2d2_jax.report.writing import write_report

        write_report(workdir, output)
    except KeyboardInterrupt:
        logger.warning("stopped while the report was written; the run itself is complete, the same command writes it")
        raise
    except (UserError, OSError) as error:
        logger.warning("there is no report of the run: %s", first_line(error))
    except Exception:
        logger.warning("there is no report of the run, which itself is complete", exc_info=True)
    else:
        print(f"Report: {output}")


if __name__ == "__main__":
    sys.exit(main())
