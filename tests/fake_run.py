"""Stands for a training of an ablation: steps, saves, logs and evaluates as one does, in milliseconds.

    python fake_run.py FOLDER SEED

The file `kill` beside its folder makes it kill itself once, `fail` refuse its input, `stop` end early. It takes no next
step as long as there is a file `wait`.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from r2d2_jax.ablation.children import end_with_parent
from r2d2_jax.atomic import written_whole
from r2d2_jax.lineage import LINEAGE, write_lineage
from r2d2_jax.lock import held

STEPS = 10


def main(folder: Path, seed: int) -> None:
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if (folder.parent / "fail").exists():
        sys.exit("error: there is no data;\nmake some")
    with held(folder, "another run", "--workdir"), contextlib.suppress(KeyboardInterrupt):
        write_lineage(({"task": "pretraining", "planned_steps": STEPS, "batch_size": 8},), folder / LINEAGE)
        train(folder, seed)


def train(folder: Path, seed: int) -> None:
    """The value at the end depends on every step being taken once."""
    kept = folder / "state.json"
    step, value = json.loads(kept.read_text()) if kept.exists() else (0, 0)
    while step < STEPS:
        step, value = step + 1, (31 * value + 7 * seed + len(folder.parent.name) + step) % 1009
        time.sleep(0.02)
        if step == 5 and (folder.parent / "kill").exists():
            (folder.parent / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and (folder.parent / "stop").exists():
            return
        with written_whole(kept) as unfinished:
            unfinished.write_text(json.dumps([step, value]))
        with (folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "loss": 1.0, "pairs_per_second": 80.0}) + "\n")
        while (folder.parent / "wait").exists():
            time.sleep(0.02)
    figures = {"step": step, "validation/dual/mean": value / 10}
    with written_whole(folder / "evaluation.json") as unfinished:
        unfinished.write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
