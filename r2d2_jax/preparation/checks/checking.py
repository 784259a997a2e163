"""Checks a corpus or a prepared dataset: reads all parts, adds up their figures, compares their sightings."""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from r2d2_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from r2d2_jax.errors import UserError, naming
from r2d2_jax.paths import user_path
from r2d2_jax.preparation.checks.assembly import Assembly
from r2d2_jax.preparation.checks.findings import findings
from r2d2_jax.preparation.checks.parts import CheckJob, check_part
from r2d2_jax.preparation.checks.report import CheckSettings, Report
from r2d2_jax.preparation.checks.sources import Part, Source
from r2d2_jax.preparation.local_runner import check_processes, run_tasks
from r2d2_jax.preparation.progress import ProgressBar


def check(
    open_source: Callable[[Path], Source], name: str, settings: CheckSettings, *, processes: int = 1, work: str = ""
) -> Report:
    """Reads everything once and reports on it.

    Args:
        open_source: opens the corpus or dataset, given a folder for its catalog.
        name: its name in the report.
        settings: the limits and the sizes of the training that it is meant for.
        processes: number of processes that read; the report does not depend on it.
        work: folder for temporary files, about 160 bytes for an image with one caption; "" takes the system's own.
            They are removed afterwards.

    Raises:
        UserError: there is nothing to check, the vocabulary is bad, or a process was killed.
    """
    check_processes(processes)
    tokenizer = _tokenizer(settings)
    with _temporary_folder(work) as folder:
        source = open_source(folder)
        parts = source.parts()
        splits = tuple(sorted({part.split: None for part in parts}, key=lambda split: split != "train"))
        job = CheckJob(source, splits, folder, tokenizer)
        _read(job, parts, processes)
        report = Assembly(job, parts, settings).report(name)
    errors, warnings = findings(report)
    return replace(report, errors=errors, warnings=warnings, status=int(bool(errors)))


def _tokenizer(settings: CheckSettings) -> Tokenizer | None:
    if settings.vocabulary is None:
        return None
    return load_tokenizer(settings.vocabulary, settings.text_length, map_punctuation=settings.map_punctuation)


@contextlib.contextmanager
def _temporary_folder(work: str) -> Iterator[Path]:
    """A folder for temporary files; messages name the lasting one in which it lies."""
    parent = user_path(work) if work else None
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="check-", dir=parent)
    except OSError as error:
        raise UserError(
            f"--work={work} cannot be made: {error.strerror}; name a folder that can be written to"
        ) from error
    with temporary as folder, naming(folder, str(Path(folder).parent)):
        yield Path(folder)


def _read(job: CheckJob, parts: list[Part], processes: int) -> None:
    progress = ProgressBar(job.source.unit, sum(part.weight for part in parts))
    try:
        with progress.showing():
            run_tasks(functools.partial(check_part, job), parts, progress.take, processes)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads the data was killed, perhaps for want of memory; lower --processes and start again"
        ) from error
