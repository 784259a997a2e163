"""What the benchmarks of train steps share: configurations, the plan of one, and names that flags list."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.train.plan import StepPlan, step_plan

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def planned(config: ConfigDict, devices: list[Any], mesh: MeshConfig | None = None) -> StepPlan:
    """The plan of a configuration's step."""
    return step_plan(Config.from_config_dict(config), devices, mesh)


def with_dropout(config: ConfigDict, rate: float | None) -> ConfigDict:
    """The configuration with another rate of dropout in text tower and cross encoders; None leaves it."""
    if rate is not None:
        config.model.text.dropout = config.model.cross.dropout = rate
    return config


def with_pairs(config: ConfigDict, pairs: int) -> ConfigDict:
    """The configuration with so many pairs in a batch, for which its queue, if it has one, has room."""
    config.train.batch_size = pairs
    if "loss" in config:  # a fine-tuning has neither these terms nor a queue
        config.loss.queue_length = max(pairs, config.loss.queue_length)
    return config


def check_listed(flag: str, names: Sequence[str], known: Iterable[Any]) -> None:
    """Raises UserError if a flag lists a name that is not known, or none."""
    expected = [str(name) for name in known]
    if unknown := [name for name in names or [""] if name not in expected]:
        raise UserError(f"--{flag}={unknown[0]}: expected of {', '.join(expected)}")
