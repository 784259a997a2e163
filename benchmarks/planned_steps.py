"""What the benchmarks of train steps share: configurations, and the plan of one."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
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
