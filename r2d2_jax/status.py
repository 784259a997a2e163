"""How a run is, for whoever looks from outside: `status.json` in its folder, which the run writes again and again."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from r2d2_jax.atomic import written_whole
from r2d2_jax.errors import UserError, first_line

STATUS = "status.json"
BEAT_SECONDS = 15.0  # between two beats of a run
SILENT_AFTER = 4 * BEAT_SECONDS  # a run that has not written for so long is taken for dead, or for cut off
# States. The first four are those of a run at work.
STARTING, TRAINING, EVALUATING, SAVING = "starting", "training", "evaluating", "saving"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
AT_WORK = (STARTING, TRAINING, EVALUATING, SAVING)


@dataclass(frozen=True)
class Status:
    """One beat of a run.

    state: one of the above. step, total_steps: completed, and of the whole run. pairs_per_second: as the log has it;
        None before its first line. remaining_seconds: of training, at that speed.
    error, error_time: the last one in this folder until the run finishes, and its time; "" and None without one.
    host, pid: of process 0. processes: how many there are. time: of the beat. Times are seconds since 1970.
    """

    state: str
    step: int
    total_steps: int
    pairs_per_second: float | None
    remaining_seconds: float | None
    error: str
    error_time: float | None
    host: str
    pid: int
    processes: int
    time: float

    def silent(self, now: float) -> bool:
        """Whether a run at work has not written for so long that it must have died."""
        return self.state in AT_WORK and now - self.time > SILENT_AFTER


def write_status(status: Status, workdir: Path) -> None:
    """Writes `status.json`.

    Raises:
        UserError: it cannot be written.
    """
    with written_whole(workdir / STATUS) as unfinished:
        unfinished.write_text(json.dumps(dataclasses.asdict(status), ensure_ascii=False) + "\n", encoding="utf-8")


def read_status(workdir: Path) -> Status | None:
    """Reads `status.json`; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = workdir / STATUS
    try:
        return Status(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {first_line(error)}; a run that is at work writes it anew within seconds, "
            "otherwise remove it"
        ) from error


def described(status: Status, now: float) -> tuple[str, ...]:
    """State, steps, speed, end of training and last beat, for people."""
    rate = "" if status.pairs_per_second is None else f"{status.pairs_per_second:.0f}"
    end = ""
    if status.state in AT_WORK and status.remaining_seconds is not None and not status.silent(now):
        left = max(0.0, status.remaining_seconds - (now - status.time))
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + left))
    state = f"silent, was {status.state}" if status.silent(now) else status.state
    return state, f"{status.step:,} of {status.total_steps:,}", rate, end, f"{age(now - status.time)} ago"


def age(seconds: float) -> str:
    """A time span in the largest unit of which there are two: "95 s", "12 min", "3 days"."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
