"""What a run is made of before its first step, in the order in which it is built."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r2d2_jax.atomic import written_whole
from r2d2_jax.buckets.lock import held_in_bucket
from r2d2_jax.buckets.path import BucketPath
from r2d2_jax.config.reading import Config
from r2d2_jax.data.bad_records import UnusableRecords
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.data.labelled_pairs import LabelledPairs, check_labelled, check_not_pairs
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from r2d2_jax.data.train_batches import train_batches
from r2d2_jax.data.workers import LostWorker
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.evaluator import Evaluator
from r2d2_jax.evaluation.matching import MatchingEvaluator
from r2d2_jax.evaluation.report import RetrievalEvaluator
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.lineage import LINEAGE, started_training, write_lineage
from r2d2_jax.lock import held
from r2d2_jax.models.r2d2 import abstract_params
from r2d2_jax.processes import by_first_process, gather_json
from r2d2_jax.sharding import check_batch_divides, make_mesh
from r2d2_jax.tasks import build_task
from r2d2_jax.tasks.queue import old_for_its_teacher
from r2d2_jax.tasks.task import SpecialTokens, Task
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.initial import with_initial_weights
from r2d2_jax.train.metrics import Window
from r2d2_jax.train.optimizer import Optimizer, check_rates, make_optimizer
from r2d2_jax.train.placement import described_move, placement
from r2d2_jax.train.state import TrainState, abstract_state, sharded_init_state, trainable_of
from r2d2_jax.vocabulary import VOCABULARY, differences, vocabulary_in, write_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunParts:
    """What a run is made of, whatever its state.

    Attributes:
        mesh: the devices.
        tokenizer: of the run's vocabulary.
        mixture: the training records.
        total_steps: length of the run.
        task: what is learned.
        optimizer: how gradients become updates.
        evaluator: what is measured, and on what.
    """

    mesh: Mesh
    tokenizer: Tokenizer
    mixture: Mixture
    total_steps: int
    task: Task
    optimizer: Optimizer
    evaluator: Evaluator


def build_parts(config: Config) -> RunParts:
    """Builds everything that the configuration names.

    Raises:
        UserError: the configuration does not fit the devices, the vocabulary or the data.
    """
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.train.batch_size, mesh, micro_batches=config.train.micro_batches)
    mixture = build_mixture(config)  # before the vocabulary, which may lie beside records that are not there
    planned = build_task(config)
    for source in mixture.sources:
        (check_labelled if planned.reads_labels else check_not_pairs)(source)
    tokenizer = build_tokenizer(config, number_words=planned.reads_words)
    epoch_steps, total_steps = run_length(config, len(mixture))
    tokens = SpecialTokens(tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    task = build_task(config, tokens=tokens, epoch_steps=epoch_steps, text_ids=mixture.has_text_ids)
    check_rates(config.optimizer, trainable_of(abstract_params(task.model), task))
    optimizer = make_optimizer(config.optimizer, total_steps)
    if config.optimizer.warmup_steps >= total_steps:
        logger.warning(
            "optimizer.warmup_steps is %d and the run has %d steps, so the rate rises to the end and never falls: "
            "lower it, to a tenth of the run for example",
            config.optimizer.warmup_steps, total_steps,
        )  # fmt: skip
    if old := old_for_its_teacher(config):
        logger.warning("%s", old)
    log_mixture(config, mixture, total_steps)
    evaluator = build_evaluator(config, task, mesh, tokenizer)
    return RunParts(mesh, tokenizer, mixture, total_steps, task, optimizer, evaluator)


@dataclass
class Position:
    """Where a run is, beside its state.

    step: completed steps. records: how many training records each corpus has. unusable: records that could not be read.
    window: metrics since the last line of the log. evaluated: whether the log has this step's evaluation.
    validations: step, and scores by stage, of every validation so far.
    """

    step: int
    records: tuple[int, ...]
    unusable: UnusableRecords
    window: Window
    evaluated: bool = False
    validations: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def to_json(self, batch_size: int) -> dict[str, Any]:
        """What a checkpoint keeps: data position, unusable records, and the open window of the log."""
        return {
            "pairs": self.step * batch_size,
            "records": list(self.records),
            "broken": self.unusable.state(),
            "window": self.window.fetched(),
            "evaluated": self.evaluated,
            "validations": self.validations,
        }


def build_tokenizer(config: Config, *, number_words: bool = False) -> Tokenizer:
    """The tokenizer of the configured vocabulary.

    Raises:
        UserError: there is no such vocabulary, or it has more tokens than the model.
    """
    vocabulary = config.data.vocabulary or str(Path(config.data.directory) / VOCABULARY)
    tokenizer = load_tokenizer(
        vocabulary,
        config.model.text.text_length,
        map_punctuation=config.data.map_punctuation,
        number_words=number_words,
    )
    if tokenizer.vocab_size > config.model.text.vocabulary_size:
        raise UserError(
            f"the vocabulary {vocabulary} has {tokenizer.vocab_size} tokens but model.text.vocabulary_size is "
            f"{config.model.text.vocabulary_size}; there is no embedding for the last tokens: raise it"
        )
    return tokenizer


def only_run_in(workdir: Path) -> ExitStack:
    """A context in which no other run may use the folder; the lock is process 0's.

    Raises:
        UserError: on every process, if another run is at work there, or the folder cannot be written to.
    """

    def hold() -> None:
        asked = ("another run", "--workdir")
        lock.enter_context(
            held_in_bucket(workdir, *asked) if isinstance(workdir, BucketPath) else held(workdir, *asked)
        )

    lock = ExitStack()
    by_first_process(hold)
    return lock


def keep_vocabulary(tokenizer: Tokenizer, workdir: Path, *, resuming: bool) -> None:
    """Writes the vocabulary beside the checkpoints, which are of no use without it.

    Raises:
        UserError: a run that resumes was started with another vocabulary.
    """
    here = tokenizer.vocabulary
    kept = vocabulary_in(workdir) if resuming else None
    if kept is not None and kept != here:
        raise UserError(
            f"the run was started with the vocabulary {kept.name} and data.vocabulary names another one, {here.name}; "
            f"go back to it, or use an empty --workdir. What differs first:\n{differences(kept, here)}"
        )
    if jax.process_index() == 0:
        with written_whole(workdir / VOCABULARY) as unfinished:
            write_vocabulary(here, unfinished)


def build_mixture(config: Config) -> Mixture:
    """The training records of the configured corpora.

    Raises:
        UserError: as `RecordSource`, of any of them, and as `Mixture`.
    """
    data = config.data
    if not data.corpora:
        return Mixture([RecordSource(data.directory, data.train_split)])
    sources = [RecordSource(folder, data.train_split, corpus=folder) for folder in data.corpora]
    return Mixture(sources, data.corpus_weights)


def log_mixture(config: Config, mixture: Mixture, total_steps: int) -> None:
    """Logs how often the run will see the records of each of several corpora."""
    epochs = total_steps * config.train.batch_size / len(mixture)
    for folder, records, rows in zip(config.data.corpora, mixture.records, mixture.rows, strict=False):
        logger.info(
            "corpus %s: %d records, %.3g %% of the rows, each record seen %.3g times in the run",
            folder, records, 100 * rows / len(mixture), rows * epochs / records,
        )  # fmt: skip


def run_length(config: Config, records: int) -> tuple[int, int]:
    """Steps per epoch, which are the full batches in it, and steps of the whole run.

    Raises:
        UserError: there are fewer records than a batch has.
    """
    if records < config.train.batch_size:
        raise UserError(
            f"train.batch_size {config.train.batch_size} is larger than the {records} records of split "
            f"{config.data.train_split!r}; lower it"
        )
    return records // config.train.batch_size, max(1, round(config.train.epochs * records / config.train.batch_size))


def build_evaluator(config: Config, task: Task, mesh: Mesh, tokenizer: Tokenizer) -> Evaluator:
    """The evaluation of the configured validation, foil and test splits.

    Raises:
        UserError: a split is absent, or the mesh does not divide `evaluation.batch_size`.
    """

    data, read = config.data, (tokenizer, config.model.image.image_size)
    scorer = Scorer(task.model, mesh, config.evaluation.batch_size)
    test = RecordSource(data.test_directory or data.directory, data.test_split) if data.test_split else None
    if task.reads_labels:
        pairs = LabelledPairs(RecordSource(data.directory, data.validation_split), *read, data.validation_images)
        return MatchingEvaluator(scorer, pairs, LabelledPairs(test, *read) if test else None)

    def split(source: RecordSource | None, limit: int = 0) -> EvaluationSplit | None:
        if source is None:
            return None
        check_not_pairs(source)
        return EvaluationSplit(source, *read, limit)

    validation, foil = (
        RecordSource(data.directory, name) if name else None for name in (data.validation_split, data.foil_split)
    )
    return RetrievalEvaluator(
        config.evaluation, scorer, split(validation, data.validation_images), split(foil), split(test)
    )


def check_newest_is_agreed(checkpoints: Checkpoints) -> None:
    """Raises UserError, on every process, unless all of them see the same newest checkpoint."""
    steps = gather_json(checkpoints.latest_step())
    if len(set(steps)) > 1:
        raise UserError(
            f"the newest checkpoint in {checkpoints.directory} is another one to each process: {steps}; --workdir must "
            "lie in a bucket or on a file system that all processes share; start again once all of them see the same"
        )


def start_or_go_on(
    config: Config, parts: RunParts, checkpoints: Checkpoints, workdir: Path
) -> tuple[TrainState, Position]:
    """A fresh state with its initial weights, or the newest checkpoint's.

    A run that starts writes its lineage into `workdir`: the weights that it starts from may be gone when it is asked.

    Raises:
        UserError: initial weights or checkpoint do not fit the configuration, or the data has changed, or the lineage
            cannot be written.
    """
    several = jax.process_count() > 1
    records = parts.mixture.records
    unusable = UnusableRecords(len(parts.mixture), config.data.max_broken_share, gather_json if several else None)
    built = (parts.task, parts.optimizer, parts.mesh)
    if checkpoints.latest_step() is None:
        logger.info("making the initial weights")
        state = sharded_init_state(*built, jax.random.key(config.train.seed))
        state, notes, lineage = with_initial_weights(state, parts.task, config, parts.tokenizer.vocabulary)
        for note in notes:
            logger.warning("initial weights: %s", note)
        own = started_training(config.to_dict(), records, parts.total_steps)
        by_first_process(lambda: write_lineage((*lineage, own), workdir / LINEAGE))
        logger.info("starting; %s", _sizes(parts, state))
        return state, Position(0, records, unusable, Window())
    state, progress = checkpoints.restore(abstract_state(*built), config)
    check_same_records(progress["records"], records, config)
    unusable.restore(progress["broken"])
    logger.info("resuming after step %d; %s", int(state.step), _sizes(parts, state))
    here = placement(parts.mesh)
    if move := described_move(progress.get("placement", here), here, config.train.batch_size):
        logger.info("%s", move)
    window, validations = Window(progress["window"]), progress.get("validations", [])
    return state, Position(int(state.step), records, unusable, window, progress["evaluated"], validations)


def check_same_records(before: Sequence[int], now: Sequence[int], config: Config) -> None:
    """Raises UserError unless each corpus has as many records as when the checkpoint was made."""
    if tuple(before) != tuple(now):
        folders = ", ".join(config.data.corpora) or config.data.directory
        were, are = (" + ".join(map(str, counts)) for counts in (before, now))
        raise UserError(
            f"the checkpoint was made with {were} training records, {folders} has {are}; the data position would be "
            "lost: use the same data, or an empty --workdir"
        )


def _sizes(parts: RunParts, state: TrainState) -> str:
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    trained = count(trainable_of(state.params, parts.task))
    return f"{count(state.params):.1f} M parameters, {trained:.1f} M of them trained, mesh {dict(parts.mesh.shape)}"


def build_batches(
    config: Config, parts: RunParts, first_step: int, on_loss: Callable[[LostWorker], None]
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches from a step on, without end; see `train_batches`."""
    return train_batches(
        parts.mixture,
        parts.tokenizer,
        config.data,
        image_size=config.model.image.image_size,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        first_step=first_step,
        text_ids=parts.task.reads_text_ids,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        labelled=parts.task.reads_labels,
        on_loss=on_loss,
    )
