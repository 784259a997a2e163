"""Trains R2D2: `python launch/main.py --config=demo --workdir=runs/demo`.

--config names a built-in configuration or a file; the same --workdir again
goes on where the run was stopped.
"""

import logging
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from r2d2_jax.buckets.path import BucketPath, check_access_of_runs
from r2d2_jax.buckets.region import warn_of_region
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import config_flag, read_configuration
from r2d2_jax.launch.plot import draw, drawn_at_the_end
from r2d2_jax.launch.program import STOPPED, parse_known, run
from r2d2_jax.launch.report import report_at_the_end, report_command
from r2d2_jax.launch.writer_threads import quiet_writer_threads
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.processes import join, leave, may_be_of_another, wait_for_verdict
from r2d2_jax.report import PICTURES
from r2d2_jax.train.host_memory import keep_freed_memory

logger = logging.getLogger(__name__)

COMPILED = "compiled"  # the folder of compiled programs in that of a run

FLAGS = flags.FlagValues()
CONFIG = config_flag(FLAGS)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept. If it holds a checkpoint, the run goes on.", flag_values=FLAGS
)
SKIP_DAMAGED = flags.DEFINE_bool(
    "skip_damaged",
    False,
    "Resume from the newest whole checkpoint: damaged ones are renamed to STEP.damaged.",
    flag_values=FLAGS,
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a TPU pod or cluster.", flag_values=FLAGS
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where nothing tells it itself.", flag_values=FLAGS
)
PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are, with --coordinator_address.", flag_values=FLAGS
)
PROCESS = flags.DEFINE_integer(
    "process_id", None, "The number of this process, with --coordinator_address.", flag_values=FLAGS
)
REPORT = flags.DEFINE_bool(
    "report", True, "Write report.html into --workdir at the end; launch/report.py does so later.", flag_values=FLAGS
)
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Imitate this many devices on the CPU.", lower_bound=1, flag_values=FLAGS
)
flags.mark_flags_as_required(["config", "workdir"], flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what the flags say and prints the last evaluation; returns the exit status."""
    with quiet_writer_threads():
        return run(_work, argv, stopped="stopped; the same command goes on")


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    config = read_configuration(str(CONFIG.value), overrides)
    if CPU_DEVICES.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", CPU_DEVICES.value)
    logger.info("loading libraries")
    # Here, because every process that decodes imports this file again, and the loop brings 200 MB that none of them
    # needs (tensorboardX imports PyTorch, where that is installed).
    from r2d2_jax.train.loop import train
    from r2d2_jax.train.sizes import with_sizes

    _join()
    workdir = _workdir()
    _keep_compiled(workdir)
    outcome = train(Config.from_config_dict(with_sizes(config, workdir)), workdir, skip_damaged=SKIP_DAMAGED.value)
    if outcome.finished and outcome.report is not None and jax.process_index() == 0:
        print(f"Step {outcome.step}, {outcome.unusable} unusable records. Checkpoints and logs: {WORKDIR.value}")
        if outcome.choice is not None:
            print(outcome.choice.table())
        elif outcome.report.metrics():
            print(outcome.report.table())
        return _show(workdir, stopped=outcome.asked_to_stop)
    return 0 if outcome.finished else STOPPED  # which whoever started it must tell apart


def _show(workdir: Path, *, stopped: bool) -> int:
    """Draws the pictures and writes the report of a finished run, unless it is to stop; returns the exit status."""
    if stopped:
        logger.warning("stopped before pictures and report; the run itself is complete, the same command makes them")
        return STOPPED
    try:
        drawn_at_the_end(lambda: draw([workdir], workdir / PICTURES), workdir / PICTURES, "the run")
        if REPORT.value:
            _report(workdir)
    except KeyboardInterrupt:  # the message is already there
        return STOPPED
    return 0


def _report(workdir: Path) -> None:
    """Writes the report, or says how: its forwards must not wait for processes that have ended."""
    if jax.process_count() > 1:
        print(f"Report: several processes write none; this does: {report_command(workdir)}")
    else:
        report_at_the_end(workdir)


def _join() -> None:
    if DISTRIBUTED.value or COORDINATOR.value:
        logger.info("joining the other processes%s", f" at {COORDINATOR.value}" if COORDINATOR.value else "")
        join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    elif PROCESSES.value is not None or PROCESS.value is not None:
        raise UserError(
            "--num_processes or --process_id is given without the place to meet; add --coordinator_address=HOST:PORT "
            "of process 0, or --distributed on a TPU pod or cluster that tells it"
        )


def _workdir() -> Path:
    workdir = path_or_bucket(str(WORKDIR.value))
    if isinstance(workdir, BucketPath):
        bucket = check_access_of_runs(workdir)
        if jax.process_index() == 0:
            warn_of_region(bucket)
    return workdir


def _keep_compiled(workdir: Path) -> None:
    """Lets JAX keep what it compiles in the run's folder, where a run that resumes finds it, unless it has a place.

    Not on CPUs: a program that was compiled for one of them may not run on the next.
    """
    if jax.default_backend() != "cpu" and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(workdir / COMPILED))


def command() -> None:
    """`main` as a process of its own: a failure ends it, and with it the processes that would wait for it."""
    keep_freed_memory()
    # `leave` runs no exit handlers: what they would have removed, multiprocessing's tracker removes, and warns.
    os.environ["PYTHONWARNINGS"] = f"{os.environ.get('PYTHONWARNINGS', '')},ignore:resource_tracker:UserWarning"
    try:
        status = main()
    except Exception as error:
        traceback.print_exc()
        status = 1
        if may_be_of_another(error):
            wait_for_verdict()
    if status:
        leave(status)


if __name__ == "__main__":
    command()
