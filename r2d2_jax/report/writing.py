"""Writes a report: opens what it is about, computes what it shows, and lays it out as one HTML file."""

import dataclasses
import logging
import tempfile
from pathlib import Path

from r2d2_jax.atomic import written_whole
from r2d2_jax.buckets.path import BucketPath
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.report import PICTURES
from r2d2_jax.report.findings import Findings, find
from r2d2_jax.report.page import page
from r2d2_jax.report.subject import Subject, open_subject

logger = logging.getLogger(__name__)

QUERIES = 1000  # of each direction that are re-ranked at most: enough for the share of repaired answers


def write_report(path: Path, output: Path, queries: int = QUERIES) -> None:
    """Writes the report of a run or an evaluation, whole or not at all.

    Args:
        path: the --workdir of a run, or a file that `launch/evaluate.py --json` wrote.
        output: the HTML file.
        queries: how many of each direction are re-ranked at most, at even distances.

    Raises:
        UserError: there is no such run or evaluation, or the file cannot be written.
    """
    subject = open_subject(path)
    findings = Findings()
    if subject.model is not None and subject.asked is not None:
        findings = find(subject.model, subject.asked, queries)
    curves, missing = _curves(subject)
    subject = dataclasses.replace(subject, missing=(*subject.missing, *missing))
    for sentence in (*subject.missing, *findings.missing):
        logger.warning("%s", sentence)
    text = page(subject, findings, curves)
    with written_whole(output) as unfinished:
        # A path that is no UTF-8 has lone surrogates in Python, which no file in UTF-8 can hold.
        unfinished.write_text(text, encoding="utf-8", errors="replace")


def _curves(subject: Subject) -> tuple[dict[str, bytes], list[str]]:
    """The pictures that the run or the evaluation has drawn, and what is missing of them."""
    if subject.document is not None:
        return _pictures_in(path_or_bucket(subject.name).with_suffix(f".{PICTURES}")), []
    assert subject.run is not None
    if drawn := _newest_pictures(subject.run):
        return drawn, []
    from r2d2_jax.plots.curves import draw_runs  # Matplotlib takes a second

    try:
        with tempfile.TemporaryDirectory(prefix="r2d2_jax-") as folder:
            draw_runs([subject.run], Path(folder))
            return _pictures_in(Path(folder)), []
    except UserError as error:
        return {}, [f"There are no curves. {first_line(error)}"]


def _newest_pictures(run: Path) -> dict[str, bytes]:
    """The pictures in a run's folder; none if its log is newer: it has gone on since they were drawn."""
    if isinstance(run, BucketPath):  # whose files say when they were copied there
        return {}
    from r2d2_jax.plots.run_log import LOG

    drawn = _pictures_in(run / PICTURES)
    log = run / LOG
    oldest = min(((run / PICTURES / f"{name}.png").stat().st_mtime for name in drawn), default=0.0)
    return drawn if log.is_file() and oldest >= log.stat().st_mtime else {}


def _pictures_in(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}
