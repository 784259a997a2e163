"""A run's folder on disk: the state and configuration in its newest checkpoint, and whether another may resume it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from r2d2_jax.damage import damage_refused, find_damage, refusal
from r2d2_jax.errors import UserError
from r2d2_jax.paths import literal_path
from r2d2_jax.trees import flat

# Keys that may change when a run resumes: they do not change what is learned.
FREE_KEYS = (
    "mesh.",
    "evaluation.",
    "initial.",  # read only before the first step
    "data.directory",
    "data.corpora",  # folders may move; their numbers of records are checked
    "data.vocabulary",
    "data.validation_split",
    "data.foil_split",
    "data.validation_images",
    "data.workers",
    "data.max_broken_share",
    "model.remat",
    "model.unroll",
    "train.log_every",
    "train.checkpoint_every",
    "train.evaluate_every",
    "train.keep_last",
    "train.keep_best",
)

# What a run did before a key existed; a checkpoint without the key resumes if the configuration asks for the same.
# Checkpoints of version 0.2 have every key that is not here.
BEFORE_THE_KEY: dict[str, Any] = {
    "loss.text_ids": False,
    "matching.loss": "cross_entropy",  # there was no matching
    "optimizer.initial_learning_rate": 0.0,
    "optimizer.schedule": "cosine",
}


def item_handlers() -> dict[str, ocp.CheckpointHandler]:
    """The handler of each item of a checkpoint, by name, so that metadata can be read before anything is restored."""
    json_items = {name: ocp.JsonCheckpointHandler() for name in ("config", "progress")}
    return {"state": ocp.StandardCheckpointHandler(), **json_items}


def load_state(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The train state, as nested dicts in host memory, and the configuration of a run's newest checkpoint.

    Raises:
        UserError: there is no checkpoint, the newest one is damaged, or it is of the former layout.
    """
    directory = (workdir / "checkpoints").absolute()
    damaged, step = find_damage(directory)
    if damaged:
        raise refusal(directory, damaged, step)
    if step is None:
        raise UserError(f"no checkpoint under {directory}; expected the --workdir of a run that has saved at least one")
    # Orbax warns about read_only every time; with these options it writes nothing either.
    options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False, cleanup_tmp_directories=False)
    manager = ocp.CheckpointManager(
        literal_path(directory, "the run's folder"), options=options, item_handlers=item_handlers()
    )
    checkpoint, items = (
        directory / str(step),
        ocp.args.Composite(state=ocp.args.StandardRestore(), config=ocp.args.JsonRestore()),
    )
    with damage_refused(directory, step):
        check_layout(manager.item_metadata(step)["state"], checkpoint)
        saved = manager.restore(step, args=items)
    return saved["state"], saved["config"]


def check_layout(metadata: Any, checkpoint: Path) -> None:
    """Raises UserError if a checkpoint, by the metadata of its state, is of the layout before tasks had a memory."""
    if {"teacher", "queue", "feature_mean"} & set(metadata.tree):
        raise UserError(
            f"{checkpoint} was written by version 0.1 of r2d2_jax, which kept teacher, queue and feature mean beside "
            "the parameters; resume it with that version, or convert its model with that version's "
            "launch/convert.py and name the result as initial.model"
        )


def config_differences(saved: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    """Yields one line for each key that must not differ but does. Both are as `Config.to_dict` gives them."""
    before, now = BEFORE_THE_KEY | dict(flat(saved, ".")), dict(flat(asked, "."))
    for key in sorted(before.keys() | now.keys()):
        if not key.startswith(FREE_KEYS) and before.get(key) != now.get(key):
            yield f"{key}: {_shown(before, key)} in the checkpoint, {_shown(now, key)} now"


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
