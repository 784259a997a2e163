"""Writes the shards of a preparation on the workers of an Apache Beam pipeline, when one machine is not enough.

Workers and this process share a file system with inputs and output under the same absolute paths, and communicate by
files in the job's folder: a shard's report marks it as finished, a note says why all workers should stop. All that the
pipeline asks of an engine is to run each task at least once, so it is the same for every engine.
"""

import concurrent.futures
import contextlib
import functools
import io
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r2d2_jax.atomic import written_whole
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.extras import BEAM, require
from r2d2_jax.preparation.progress import Watch
from r2d2_jax.preparation.shard_task import Job, ShardTask, shard_report, take_finished, write_shard

_POLL_SECONDS = 1.0
_SETTLE_SECONDS = 60.0  # by default NFS shows a file of another machine after at most 60 s


def in_beam(options: str) -> Callable[[Job, Sequence[ShardTask], Watch], None]:
    """A runner that writes shards in a Beam pipeline; they are the same, byte for byte, as those of `in_processes`.

    While the pipeline runs, the watch takes the progress of whole shards. Once too many entries are unusable, or a
    shard raises UserError, shards that have not begun are left out, so that the pipeline ends.

    Args:
        options: Beam's pipeline options as on a command line, such as "--runner=FlinkRunner --parallelism=64".

    Raises:
        UserError: Beam is not installed or does not know the options; by the runner: whatever a shard raises, too many
            unusable entries, or the pipeline failed. Finished shards are kept.
    """
    require(BEAM, "--beam_options", "beam")
    parsed = _parsed(options)

    def run(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        if tasks:
            _run_and_follow(parsed, job, tasks, watch)

    return run


def _parsed(options: str) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions
    from apache_beam.runners.runner import create_runner

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = PipelineOptions(shlex.split(options))
            parsed.view_as(SetupOptions).save_main_session = False  # workers import this package
            runner = create_runner(parsed.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER)
            unknown = _unknown(parsed, runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--beam_options={options!r}: {first_line(error)}") from error
    except SystemExit as error:  # raised by argparse, which also prints every option it knows
        if not error.code:
            raise
        reason = printed.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"--beam_options={options!r}: {reason}") from error
    if unknown:
        raise UserError(
            f"--beam_options={options!r}: Beam does not know {', '.join(unknown)}; correct it or leave it out"
        )
    return parsed


def _unknown(parsed: Any, runner: Any) -> list[str]:
    """Options that Beam does not know; empty for runners on servers, which have options of their own."""
    from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    if not isinstance(runner, (SwitchingDirectRunner, BundleBasedDirectRunner, FnApiRunner)):
        return []
    known = parsed.get_all_options().keys()
    return [f"--{name}" for name in parsed.get_all_options(retain_unknown_options=True) if name not in known]


def _run_and_follow(options: Any, job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
    note = job.folder / f"stop-{uuid.uuid4().hex}"  # a name of this pipeline: an earlier one may still be ending
    ended = threading.Event()
    # Beam gets the main thread: some of its runners set signal handlers.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        following = executor.submit(_follow, job, tasks, watch, note, ended)
        try:
            _run_pipeline(options, job, tasks, note)
        except BaseException:
            _leave(note, "stopped")
            raise
        finally:
            ended.set()
    following.result()
    if note.is_file():
        raise UserError(note.read_text(encoding="utf-8"))


def _run_pipeline(options: Any, job: Job, tasks: Sequence[ShardTask], note: Path) -> None:
    import apache_beam as beam

    try:
        pipeline = beam.Pipeline(options=options)
        spread = pipeline | "Tasks" >> beam.Create(list(tasks)) | "Spread" >> beam.Reshuffle()
        _ = spread | "WriteShard" >> beam.Map(functools.partial(_write, job, note))
        pipeline.run().wait_until_finish()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if any(map(str.isalpha, line))]
        reason = lines[-1].strip() if lines else type(error).__name__
        raise UserError(
            f"the Beam pipeline failed: {reason}; mend that and start again: finished shards are kept"
        ) from error


def _write(job: Job, note: Path, task: ShardTask) -> None:
    if note.is_file() or shard_report(job, task):  # engines may run a task more than once
        return
    try:
        write_shard(job, task, lambda progress: None)
    except UserError as error:
        _leave(note, str(error))  # an exception would make the engine try again and would arrive as a traceback


def _follow(job: Job, tasks: Sequence[ShardTask], watch: Watch, note: Path, ended: threading.Event) -> None:
    """Gives the watch each shard that is finished, until all are or the pipeline has ended and none follows."""
    try:
        while not ended.wait(_POLL_SECONDS):
            tasks = take_finished(job, tasks, watch.take)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (tasks := take_finished(job, tasks, watch.take)) and not note.is_file() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    except UserError as error:
        _leave(note, str(error))
        raise


def _leave(note: Path, reason: str) -> None:
    with written_whole(note) as unfinished:
        unfinished.write_text(reason, encoding="utf-8")
