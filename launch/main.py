"""Pre-trains R2D2: `python launch/main.py --config=configs/demo.py --workdir=runs/demo`."""

import logging
import sys
import threading
import traceback
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.processes import join, leave

CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration; --config.KEY=VALUE overrides a value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept. If it holds a checkpoint, the run goes on.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of a TPU pod or cluster.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, where nothing tells it itself.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are, with --coordinator_address.")
PROCESS = flags.DEFINE_integer("process_id", None, "The number of this process, with --coordinator_address.")
CPU_DEVICES = flags.DEFINE_integer("cpu_devices", None, "Imitate this many devices on the CPU.", lower_bound=1)
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    """Flags in, one library call out."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for talkative in ("absl", "orbax", "httpx", "jax"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    _main_thread_alone_reports()
    if CPU_DEVICES.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", CPU_DEVICES.value)
    # Here, because every process that decodes imports this file again, and the loop brings 200 MB that none of them
    # needs (tensorboardX imports PyTorch, where that is installed).
    from r2d2_jax.train.loop import train

    try:
        _join()
        outcome = train(Config.from_config_dict(CONFIG.value), _workdir())
    except UserError as error:
        leave(_refused(error))
    except Exception:
        traceback.print_exc()
        leave(1)
    if outcome.finished and outcome.report is not None and jax.process_index() == 0:
        print(f"Step {outcome.step}, {outcome.broken} unusable records. Checkpoints and logs: {WORKDIR.value}")
        print(outcome.report.table())


def _join() -> None:
    if DISTRIBUTED.value or COORDINATOR.value:
        join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    elif PROCESSES.value is not None or PROCESS.value is not None:
        raise UserError(
            "--num_processes or --process_id is given without the place to meet; add --coordinator_address=HOST:PORT "
            "of process 0, or --distributed on a TPU pod or cluster that tells it"
        )


def _workdir() -> Path:
    workdir = str(WORKDIR.value)
    if "://" in workdir:
        raise UserError(f"--workdir={workdir} is an address; expected a local or mounted folder: mount it first")
    return Path(workdir)


def _main_thread_alone_reports() -> None:
    """Orbax raises in the main thread what fails in its background writer, and before that every one of its threads,
    tasks and callbacks prints a traceback: hundreds of lines that would bury the one message that is made of it."""
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    for reporter in ("absl", "asyncio"):
        logging.getLogger(reporter).addFilter(lambda record: not record.exc_info)


def _refused(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _parse(arguments: list[str]) -> list[str]:
    """Parses flags; a --config.KEY that the configuration does not have gets one message instead of a traceback."""
    try:
        return app.parse_flags_with_usage(arguments)
    except (AttributeError, KeyError) as error:
        reason = str(error.args[0]).strip("'\"").replace("\\n", " ").replace("\n", " ")
        unknown = UserError(f"a --config.KEY=VALUE names a key that the configuration does not have: {reason}")
        sys.exit(_refused(unknown))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
