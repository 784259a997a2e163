"""A run's folder on disk: the state and configuration in its newest checkpoint, and whether another may resume it."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from r2d2_jax.config.run import EvaluationConfig
from r2d2_jax.damage import (
    METRICS,
    SET_ASIDE,
    DamagedError,
    check_whole,
    damage_refused,
    find_damage,
    refusal,
    steps_of,
)
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.paths import literal_path
from r2d2_jax.trees import flat

EVALUATION = "evaluation.json"  # figures of the last evaluation of a run, and the step that they describe

# Keys that change neither what is learned nor what is measured: where and how fast it is computed, and what is logged
# and kept of it.
HARMLESS_KEYS = (
    "mesh.",
    "data.workers",
    "data.max_broken_share",
    "model.remat",
    "model.unroll",
    "train.micro_batches",
    "train.log_every",
    "train.checkpoint_every",
    "train.weigh_terms_every",
    "train.stall_seconds",
    "train.keep_last",
)
# Keys that may change when a run resumes: they do not change what is learned.
FREE_KEYS = (
    *HARMLESS_KEYS,
    "evaluation.",
    "initial.",  # read only before the first step
    "data.directory",
    "data.corpora",  # folders may move; their numbers of records are checked
    "data.vocabulary",
    "data.validation_split",
    "data.test_split",
    "data.test_directory",
    "data.foil_split",
    "data.validation_images",
    "train.evaluate_every",  # and _epochs
    "train.keep_best",
)

# What a run did before a key existed; a checkpoint without the key resumes if the configuration asks for the same.
# Checkpoints of version 0.2 have every key that is not here.
BEFORE_THE_KEY: dict[str, Any] = {
    "loss.fgd_features": "projected",
    "loss.fgd_ramp_epochs": 0.0,
    "loss.negative_hardness": 1.0,
    "loss.text_ids": False,
    "matching.loss": "cross_entropy",  # there was no matching
    "model.cross.dropout": 0.0,
    "model.text.dropout": 0.0,
    "optimizer.initial_learning_rate": 0.0,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_share": 1.0,
    "retrieval.negative_hardness": 1.0,
}


# What a score on validation depends on beside the weights; "reranked" also on the number of candidates.
SCORED_BY = ("data.validation_split", "data.validation_images", "evaluation.directions")


def item_handlers() -> dict[str, ocp.CheckpointHandler]:
    """The handler of each item of a checkpoint, by name, so that metadata can be read before anything is restored."""
    json_items = {name: ocp.JsonCheckpointHandler() for name in ("config", "progress")}
    return {"state": ocp.StandardCheckpointHandler(), **json_items}


class SavedRun(NamedTuple):
    """What was read of a run.

    state: the train state, as nested dicts in host memory. config: the configuration, as `Config.to_dict` gave it.
    note: which step was read, and why, where there was a choice; otherwise "".
    """

    state: dict[str, Any]
    config: dict[str, Any]
    note: str


def compared_by(config: dict[str, Any]) -> str:
    """The stage by whose score on validation the checkpoints of a run are compared: "match", "reranked" or "dual"."""
    settings = {name: config["evaluation"][name] for name in ("rerank_candidates", "rerank_during_training")}
    return "match" if config["task"] == "matching" else EvaluationConfig(**settings).compared_by


def chooses(config: dict[str, Any]) -> bool:
    """Whether a run ends with the choice of its best weights (see `train.choice`); runs before the keys never do."""
    return bool(config["data"].get("test_split") or config["train"].get("evaluate_every_epochs"))


def last_evaluation(directory: Path) -> tuple[dict[str, float], int | None]:
    """The figures of a run's last evaluation, and the step that they describe; empty before there is one.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / EVALUATION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in values.items() if "/" in name}, values["step"]
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; copy it back, or remove it") from error


def best_step(directory: Path, stage: str) -> int | None:
    """The checkpoint in a folder with the best score on validation, the last of equal ones; None if none has any."""
    scores: dict[int, float] = {}
    for step in steps_of(directory):
        with contextlib.suppress(FileNotFoundError):  # saved without an evaluation
            found = json.loads((directory / str(step) / METRICS).read_text(encoding="utf-8"))
            if stage in (found or {}):
                scores[step] = found[stage]
    return max(scores, key=lambda step: (scores[step], step)) if scores else None


def load_state(workdir: Path, step: int | None = None) -> SavedRun:
    """A checkpoint of a run: the newest, or the best on validation of a run that chooses (see `train.choice`).

    Args:
        workdir: the run's folder.
        step: reads this checkpoint instead.

    Raises:
        UserError: there is no such checkpoint, it or the newest one is damaged, or it is of the former layout.
    """
    directory = (workdir / "checkpoints").absolute()
    damaged, newest = find_damage(directory)
    if damaged:
        raise refusal(directory, damaged, newest)
    if newest is None:
        raise UserError(f"no checkpoint under {directory}; expected the --workdir of a run that has saved at least one")
    # Orbax warns about read_only every time; with these options it writes nothing either.
    options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False, cleanup_tmp_directories=False)
    manager = ocp.CheckpointManager(
        literal_path(directory, "the run's folder"), options=options, item_handlers=item_handlers()
    )
    with damage_refused(directory, newest):
        check_layout(manager.item_metadata(newest)["state"], directory / str(newest))
        config = manager.restore(newest, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
    chosen, note = _chosen(directory, config, newest) if step is None else (step, f"step {step}, as asked for")
    if chosen != newest:
        check_older(directory, chosen)
    with damage_refused(directory, chosen):
        saved = manager.restore(chosen, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    return SavedRun(saved["state"], config, note)


def _chosen(directory: Path, config: dict[str, Any], newest: int) -> tuple[int, str]:
    """The step to read, and a note where there was a choice."""
    if not chooses(config):
        return newest, ""
    stage = compared_by(config)
    best = best_step(directory, stage)
    if best is None:
        return newest, f"step {newest}, the newest: none was evaluated yet"
    return best, f"step {best}, the best on validation by {stage}; the newest is {newest}"


def check_older(directory: Path, step: int) -> None:
    """Raises UserError unless there is such a checkpoint and every byte of it is as it was written."""
    if step not in (steps := steps_of(directory)):
        raise UserError(f"there is no checkpoint of step {step} in {directory}; there are {', '.join(map(str, steps))}")
    try:
        check_whole(directory / str(step))
    except DamagedError as damage:
        raise UserError(
            f"the checkpoint of step {step} in {directory} is damaged: {damage}; copy it back, or rename {step} to "
            f"{step}.{SET_ASIDE} to do without it"
        ) from damage


def check_layout(metadata: Any, checkpoint: Path) -> None:
    """Raises UserError if a checkpoint, by the metadata of its state, is of the layout before tasks had a memory."""
    if {"teacher", "queue", "feature_mean"} & set(metadata.tree):
        raise UserError(
            f"{checkpoint} was written by version 0.1 of r2d2_jax, which kept teacher, queue and feature mean beside "
            "the parameters; resume it with that version, or convert its model with that version's "
            "launch/convert.py and name the result as initial.model"
        )


def config_differences(
    saved: dict[str, Any],
    asked: dict[str, Any],
    *,
    free: tuple[str, ...] = FREE_KEYS,
    where: str = "in the checkpoint",
) -> Iterator[str]:
    """Yields one line for each key that must not differ but does.

    Args:
        saved, asked: as `Config.to_dict` gives them.
        free: how keys begin that may differ.
        where: the saved one is, for the lines.
    """
    return _differences(saved, asked, lambda key: not key.startswith(free), where)


def score_differences(saved: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    """Yields one line for each difference that makes scores on validation another measure than before."""
    keys = (*SCORED_BY, "evaluation.rerank_candidates") if compared_by(asked) == "reranked" else SCORED_BY
    return _differences(saved, asked, keys.__contains__)


def _differences(
    saved: dict[str, Any], asked: dict[str, Any], of: Callable[[str], bool], where: str = "in the checkpoint"
) -> Iterator[str]:
    before, now = BEFORE_THE_KEY | dict(flat(saved, ".")), dict(flat(asked, "."))
    for key in sorted(before.keys() | now.keys()):
        if of(key) and before.get(key) != now.get(key):
            yield f"{key}: {_shown(before, key)} {where}, {_shown(now, key)} now"


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
