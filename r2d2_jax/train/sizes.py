"""Sizes of a model that a configuration leaves to the model it starts from."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from r2d2_jax.convert.conversion import open_model
from r2d2_jax.damage import steps_of
from r2d2_jax.errors import UserError
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.presets import AS_INITIAL


def with_sizes(config: ConfigDict, workdir: Path | None = None) -> ConfigDict:
    """Fills in every size of the model that is `AS_INITIAL`; what the configuration gives itself stays.

    Args:
        config: the configuration, before it is read.
        workdir: the run's folder; None where there is no run. One that resumes has the sizes of its own checkpoint:
            its parent may be gone.

    Raises:
        UserError: a size is to be found, and there is neither a checkpoint nor an initial model.
    """
    model = config.get("model")
    left = list(_left_open(model, "")) if isinstance(model, ConfigDict) else []  # what is amiss, the reader says
    if not left:
        return config
    sizes = (_of_run(workdir) if workdir is not None else None) or _of_model(config)
    for path in left:
        *blocks, name = path.split(".")
        block, given = model, sizes
        for each in blocks:
            block, given = block[each], given[each]
        block[name] = given[name]
    return config


def _left_open(block: ConfigDict, where: str) -> Iterator[str]:
    for name, value in block.items():
        if isinstance(value, ConfigDict):
            yield from _left_open(value, f"{where}{name}.")
        elif type(value) is int and value == AS_INITIAL:
            yield f"{where}{name}"


def _of_run(workdir: Path) -> dict[str, Any] | None:
    """The sizes in a run's newest checkpoint that can be read; damage is settled when the run resumes."""
    checkpoints = (workdir / "checkpoints").absolute()
    for step in reversed(steps_of(checkpoints)):
        try:
            return json.loads((checkpoints / str(step) / "config" / "metadata").read_text(encoding="utf-8"))["model"]
        except (OSError, ValueError, KeyError):
            continue
    return None


def _of_model(config: ConfigDict) -> dict[str, Any]:
    named = config.initial.model
    if not named:
        raise UserError(
            "initial.model is not set; a fine-tuning starts from a model and has its sizes: name a published file, a "
            "folder that launch/convert.py wrote, or the --workdir of a run, as --config.initial.model=models/r2d2_vitl"
        )
    path = path_or_bucket(named)
    sizes = _of_run(path)
    if sizes is not None:
        return sizes
    try:
        return dataclasses.asdict(open_model(path).config)
    except UserError as error:
        raise UserError(f"initial.model: {error}") from error
