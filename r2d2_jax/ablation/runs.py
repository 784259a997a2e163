"""The runs of an ablation on disk: where each lies, how far it is, and what its last evaluation says."""

import contextlib
import json
import os
import pprint
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d2_jax.ablation.plan import Plan
from r2d2_jax.atomic import written_whole
from r2d2_jax.damage import steps_of
from r2d2_jax.lineage import LINEAGE, read_lineage
from r2d2_jax.runs import EVALUATION

CONFIG = "config.py"
_TAIL = 2**16  # bytes at the end of a log in which its last line is looked for


@dataclass(frozen=True)
class AblationRun:
    """One training of an ablation: an ordinary run with a folder and a log of its output beside it.

    root: the ablation's folder.
    """

    root: Path
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """For people, and of the folder below the ablation's."""
        return f"{self.variant}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's --workdir."""
        return self.root / self.name

    @property
    def output(self) -> Path:
        """What its program printed."""
        return self.root / f"{self.name}.log"

    @property
    def config(self) -> Path:
        """The configuration file of its variant."""
        return self.root / self.variant / CONFIG

    def noted(self) -> dict[str, Any]:
        """What the run has noted of itself when it started, such as `planned_steps` and `batch_size`; empty before."""
        lineage = read_lineage(self.folder / LINEAGE)
        return lineage[-1] if lineage else {}

    def last_line(self) -> dict[str, float]:
        """The newest line about training steps in its log; empty before the first."""
        for line in reversed(_tail(self.folder / "metrics.jsonl").split(b"\n")):
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                if "loss" in values:
                    return values
        return {}

    def result(self) -> dict[str, float] | None:
        """The figures of its last evaluation, by the names of the log; None until the run has come to its end."""
        try:
            values = json.loads((self.folder / EVALUATION).read_text(encoding="utf-8"))
            last = values.get("last_step", values["step"])
        except (OSError, ValueError, KeyError):
            return None
        if last != self.noted().get("planned_steps") or not self._last_checkpoint_is_whole(last):
            return None
        return {name: value for name, value in values.items() if "/" in name}

    def _last_checkpoint_is_whole(self, step: int) -> bool:
        """A run that is killed after its evaluation may still be writing; without any, somebody has made room."""
        checkpoints = self.folder / "checkpoints"
        return not checkpoints.is_dir() or step in steps_of(checkpoints)


def runs_of(plan: Plan, root: Path) -> Iterator[AblationRun]:
    """Every run, seed after seed, so that there is soon something to compare."""
    for seed in plan.seeds:
        for variant in plan.variants:
            yield AblationRun(root, variant, seed)


def results_of(plan: Plan, root: Path) -> dict[str, dict[int, dict[str, float]]]:
    """The figures of every finished run: variant -> seed -> name in the log -> value."""
    found: dict[str, dict[int, dict[str, float]]] = {variant: {} for variant in plan.variants}
    for run in runs_of(plan, root):
        if (result := run.result()) is not None:
            found[run.variant][run.seed] = result
    return found


def write_configs(plan: Plan, root: Path) -> None:
    """Writes each variant's configuration file, which trains it by hand too.

    Raises:
        UserError: it cannot be written.
    """
    for variant, changes in plan.variants.items():
        config = pprint.pformat(plan.config_of(variant).to_dict(), width=110, sort_dicts=False)
        text = _CONFIG_FILE.format(variant=variant, changes=_comment(changes), config=config)
        with written_whole(root / variant / CONFIG) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


_CONFIG_FILE = '''"""The variant {variant} of an ablation, which wrote this file: {changes}."""

from ml_collections import ConfigDict

CONFIG = {config}


def get_config() -> ConfigDict:
    """All values; --config.train.seed chooses the seed."""
    return ConfigDict(CONFIG)
'''


def _comment(changes: dict[str, Any]) -> str:
    text = " ".join(f"{key}={value}" for key, value in changes.items()) or "the full method"
    return text.replace("\\", "").replace('"', "'")


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return file.read()
    except OSError:  # not there yet
        return b""
