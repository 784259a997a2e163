"""Checkpoints: train state, progress and resolved configuration, written by Orbax, asynchronously and atomically."""

import copy
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from r2d2_jax.atomic import is_disk_error
from r2d2_jax.buckets.path import BucketError, BucketPath, advice, is_bucket_error
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import TrainConfig
from r2d2_jax.damage import (
    DamagedError,
    damage_refused,
    find_damage,
    list_files,
    read_metadata,
    refusal,
    set_aside,
    steps_of,
)
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted, first_line
from r2d2_jax.paths import literal_path
from r2d2_jax.runs import check_layout, config_differences, item_handlers, score_differences
from r2d2_jax.sharding import path_name
from r2d2_jax.train.state import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one working directory.

    Args:
        workdir: the run's folder; checkpoints lie in `checkpoints/STEP` below it.
        train: how many of the last and of the best are kept.
        compared_by: the stage of an evaluation, such as "reranked", by whose score the best are chosen.
    """

    def __init__(self, workdir: Path, train: TrainConfig, compared_by: str = "dual") -> None:
        self.directory = (workdir / "checkpoints").absolute()
        self._saving: tuple[int, dict[str, str]] | None = None  # the step that is being written, and its leaves

        def score(scores: dict[str, float]) -> float:
            # A run may have gone on with other evaluation settings: what was not measured is never the best.
            return scores.get(compared_by, -math.inf)

        kept = [LatestN(train.keep_last)]
        if train.keep_best:
            kept.append(BestN(get_metric_fn=score, n=train.keep_best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            # The policy decides what is kept; only with best_fn are the metrics it goes by written and read again.
            best_fn=score,
            preservation_policy=AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            save_root_metadata=False,
            # Called before the folder gets its final name, and so before older checkpoints are removed.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._read_back),
        )
        directory = literal_path(self.directory, "--workdir")
        try:
            self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=item_handlers())
        except OSError as error:
            raise UserError(f"cannot use {self.directory}: {first_line(error)}; choose another --workdir") from error

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def last_good(self) -> str:
        """For messages: the step from which a run can resume."""
        # Of the disk: a save that fails has made Orbax forget those that it was to replace, and removed none.
        try:
            steps = steps_of(self.directory)
        except BucketError:
            return f"what was saved before is in {self.directory}"
        return (
            f"the last good checkpoint is step {steps[-1]} in {self.directory}"
            if steps
            else "there is no checkpoint yet"
        )

    def save(
        self, state: TrainState, config: Config, progress: dict[str, Any], scores: dict[str, float] | None = None
    ) -> None:
        """Starts writing a checkpoint and returns as soon as the state may change again.

        Args:
            state: the train state; its step names the checkpoint.
            config: the resolved configuration.
            progress: plain JSON values: the data position and the open window of the log.
            scores: the validation figures by which the best are kept, by stage, if there are any.

        Raises:
            UserError: this checkpoint, or the one before it, cannot be written; in a bucket a `BucketError`.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            config=ocp.args.JsonSave(config.to_dict()),
            # A copy, because Orbax writes it in the background while the run changes it.
            progress=ocp.args.JsonSave(copy.deepcopy(progress)),
        )
        with self._writing():
            self._manager.wait_until_finished()
            self._saving = int(state.step), _leaves(state)
            if self._manager.latest_step() == int(state.step):  # saved before it was evaluated
                self._manager.delete(int(state.step))
            self._manager.save(int(state.step), args=items, metrics=scores or None, force=True)

    def restore(
        self, abstract: TrainState, config: Config, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, or that of a step, placed as `abstract` says, and its progress.

        Raises:
            UserError: the checkpoint is of another model or configuration, with what differs, of the former layout, or
                of another step than its folder says.
        """
        resumes = step is None
        step = self._manager.latest_step() if step is None else step
        with damage_refused(self.directory, step):
            metadata = self._manager.item_metadata(step)["state"]
            check_layout(metadata, self.directory / str(step))
            saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        differences = [*config_differences(saved["config"], config.to_dict()), *_leaf_differences(metadata, abstract)]
        if differences:
            raise UserError(
                f"the checkpoint {self.directory / str(step)} is of another model or configuration; start in an empty "
                "--workdir, or go back to the configuration that it was made with. What differs:\n"
                + bulleted(differences)
            )
        if resumes and (otherwise := list(score_differences(saved["config"], config.to_dict()))):
            logger.warning(
                "validation is measured otherwise from here on, and its scores are compared with earlier ones all the "
                "same. What differs:\n%s",
                bulleted(otherwise),
            )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        with damage_refused(self.directory, step):
            restored = self._manager.restore(step, args=items)
        if (inside := int(restored["state"].step)) != step:
            raise UserError(
                f"the checkpoint {self.directory / str(step)} holds the state of step {inside}, so its folder was "
                f"renamed; rename it to {inside}, or remove it if there is one of that name"
            )
        return restored["state"], restored["progress"]

    def wait(self) -> None:
        """Waits until everything that was started is on disk; raises UserError if that is not possible."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then ends the background writer; raises UserError if what was started cannot be written."""
        with self._writing():
            self._manager.close()

    def _read_back(self) -> None:
        """Reads the metadata of what was just written, compares it with what was saved, and lists the files.

        Orbax calls this in its thread on process 0; what is raised here keeps the checkpoint from its final name.
        """
        assert self._saving is not None
        step, expected = self._saving
        unfinished = next(self.directory.glob(f"{step}.orbax-checkpoint-tmp*"), self.directory / str(step))
        found = _leaves(read_metadata(unfinished))
        if differing := [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]:
            raise DamagedError(f"{unfinished} lacks what was saved: {', '.join(sorted(differing)[:FIRST_NAMES])}")
        list_files(unfinished)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of the devices or of other processes, not of the disk
            raise
        except DamagedError as damage:
            raise UserError(
                f"a checkpoint was written and cannot be read back: {damage}; it is not kept, and {self.last_good()}; "
                "check the disk, or choose another --workdir"
            ) from damage
        except Exception as error:
            in_bucket = isinstance(self.directory, BucketPath) and is_bucket_error(error)
            if not in_bucket and not is_disk_error(error):
                raise
            refused = BucketError if in_bucket else UserError
            raise refused(
                f"cannot write a checkpoint to {self.directory}: {_reason(error)}; {self.last_good()}; "
                f"{_remedy(error, in_bucket)}, then run the same command again to resume"
            ) from error


def settle_damage(workdir: Path, *, skip: bool) -> None:
    """Sees that the newest checkpoint of a run is whole.

    Args:
        workdir: the run's folder.
        skip: whether to rename what is damaged, as long as a whole one is left.

    Raises:
        UserError: a checkpoint is damaged, and `skip` does not say to go on without it, or there is no other.
    """
    directory = (workdir / "checkpoints").absolute()
    damaged, whole = find_damage(directory)
    if damaged and (whole is None or not skip):
        raise refusal(directory, damaged, whole)
    for step, damage in damaged.items():
        aside = set_aside(directory / str(step))
        logger.warning("the checkpoint of step %d is damaged: %s; it is renamed to %s", step, damage, aside.name)


def _reason(error: BaseException) -> str:
    """What the operating system or the bucket said; TensorStore wraps it in several hundred characters."""
    said = re.search(r"([^:]+) \[os_error_code", str(error)) or re.match(r"(.*?) \[http_response_", str(error))
    return said.group(1).strip() if said else first_line(error)


def _remedy(error: BaseException, in_bucket: bool) -> str:
    if isinstance(error, BucketError):
        return "mend that"  # its message says how
    return advice(error) if in_bucket else "make room or mend the folder"


def _leaf_differences(metadata: Any, abstract: TrainState) -> Iterator[str]:
    before, now = _leaves(metadata), _leaves(abstract)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name}: {before.get(name, 'absent')} in the checkpoint, {now.get(name, 'absent')} now"


def _leaves(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
