"""The pre-training run: steps, logs, evaluates, saves, and goes on where it stopped."""

import json
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from r2d2_jax.atomic import written_whole
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.report import EvaluationReport, Evaluator
from r2d2_jax.processes import check_shared
from r2d2_jax.sharding import check_batch_divides, global_batch, make_mesh
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.compiled import compile_all_finite, compile_train_step
from r2d2_jax.train.metrics import MetricsLog
from r2d2_jax.train.progress import Progress
from r2d2_jax.train.signals import StopRequest
from r2d2_jax.train.start import (
    Position,
    check_newest_is_agreed,
    keep_vocabulary,
    log_mixture,
    run_batches,
    run_evaluator,
    run_mixture,
    run_recipe,
    run_tokenizer,
    start_or_go_on,
)
from r2d2_jax.train.state import Recipe, TrainState

logger = logging.getLogger(__name__)

# How many steps the host may be ahead of the devices: enough to keep them busy, few enough to bound memory.
STEPS_IN_FLIGHT = 2


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: completed steps. finished: whether that is the end of the run. report: the last evaluation.
    broken: how many records were unusable, to all processes together.
    """

    step: int
    finished: bool
    report: EvaluationReport | None
    broken: int


def pretrain(config: Config, workdir: Path) -> Outcome:
    """Pre-trains, or goes on with, the run in `workdir`.

    Args:
        config: the resolved configuration.
        workdir: where checkpoints, `vocab.txt`, `metrics.jsonl`, TensorBoard files and `evaluation.json` go. If it
            holds a checkpoint of the same configuration, the run goes on from the newest one.

    Raises:
        UserError: bad configuration, data or checkpoint, numbers that are not finite, or a disk that takes no more.
    """
    with ExitStack() as ends:
        # The outermost, so that a signal finds it in place until the last checkpoint is on disk.
        stop = ends.enter_context(StopRequest())
        mesh = make_mesh(config.mesh)
        check_batch_divides(config.train.batch_size, mesh)
        tokenizer = run_tokenizer(config)
        mixture = run_mixture(config)
        recipe, total_steps = run_recipe(config, tokenizer, mesh, len(mixture))
        log_mixture(config, mixture, total_steps)
        evaluator = run_evaluator(config, recipe, tokenizer)
        check_shared(workdir)
        compared_by = config.evaluation.compared_by
        checkpoints = ends.enter_context(closing(Checkpoints(workdir, config.train, compared_by)))
        check_newest_is_agreed(checkpoints)
        state, position = start_or_go_on(config, recipe, checkpoints, mixture)
        keep_vocabulary(tokenizer, workdir, going_on=checkpoints.latest_step() is not None)
        run = _Run(config, recipe, evaluator, checkpoints, workdir, total_steps, stop)
        return run.go(state, position, run_batches(config, tokenizer, mixture, position.step))


class _Run:
    """The loop and what it talks to."""

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        workdir: Path,
        total_steps: int,
        stop: StopRequest,
    ) -> None:
        self._config, self._recipe, self._total = config, recipe, total_steps
        self._evaluator, self._checkpoints, self._workdir, self._stop = evaluator, checkpoints, workdir, stop
        self._leader = jax.process_index() == 0
        self._step, self._all_finite = compile_train_step(config, recipe), compile_all_finite(recipe)
        self._key = jax.random.key(config.train.seed)

    def go(
        self, state: TrainState, position: Position, batches: Generator[dict[str, np.ndarray], None, None]
    ) -> Outcome:
        """Steps until the end of the run or a stop signal; closes the batches."""
        with ExitStack() as ends:
            file = MetricsLog(self._workdir, position.step, self._leader, position.evaluated)
            log = ends.enter_context(closing(file))
            bar = Progress(position.step, self._total, self._config.train.batch_size, self._leader)
            progress = ends.enter_context(closing(bar))
            with closing(batches):
                state, report = self._train(state, position, batches, log, progress)
            if position.step < self._total:
                self._leave(state, position)
            else:
                report = self._finish(state, position, log)
        return Outcome(position.step, position.step >= self._total, report, position.broken.broken)

    def _train(
        self,
        state: TrainState,
        position: Position,
        batches: Iterator[dict[str, np.ndarray]],
        log: MetricsLog,
        progress: Progress,
    ) -> tuple[TrainState, EvaluationReport | None]:
        """Steps until all are done or a stop signal; returns the state and the last evaluation."""
        report, stopped = None, self._stop.agreed(position.step)  # it may have come while everything was set up
        if self._evaluation_due(position) and position.step < self._total and not stopped:
            with progress.pause():
                report = self._evaluate(state, position, log, final=False)
        while position.step < self._total and not stopped:
            state = self._one_step(state, position, next_batch(batches, progress), progress)
            if position.step % self._config.train.log_every == 0:
                self._log(position, log, progress)
            stopped = self._stop.agreed(position.step)
            if position.step < self._total and not stopped:
                with progress.pause():
                    report = self._milestone(state, position, log) or report
        return state, report

    def _leave(self, state: TrainState, position: Position) -> None:
        """Saves what a stop signal interrupted, unless nothing is new."""
        if position.step and self._checkpoints.latest_step() != position.step:
            self._save(state, position)
        name = self._stop.received.name if self._stop.received else "another process"
        logger.info("stopped by %s after step %d; the same command goes on from there", name, position.step)

    def _one_step(
        self, state: TrainState, position: Position, rows: dict[str, np.ndarray], progress: Progress
    ) -> TrainState:
        position.broken.update(rows["problems"])
        state, metrics = self._step(state, global_batch(self._recipe.mesh, rows), self._key)
        position.window.add(metrics)
        position.step += 1
        position.evaluated = False
        position.window.wait(STEPS_IN_FLIGHT)
        progress.stepped()
        return state

    def _log(self, position: Position, log: MetricsLog, progress: Progress) -> None:
        position.broken.share()
        self._check_metrics(position)
        means = position.window.means()
        speed = progress.report(position.step, means)
        epoch = position.step * self._config.train.batch_size / position.broken.epoch_size
        log.write(position.step, {"epoch": epoch, **means, "broken_records": position.broken.broken, **speed})

    def _milestone(self, state: TrainState, position: Position, log: MetricsLog) -> EvaluationReport | None:
        """Evaluates and saves where the configured intervals say so."""
        every, report = self._config.train.checkpoint_every, None
        if self._evaluation_due(position):
            report = self._evaluate(state, position, log, final=False)
        if report is not None or (every and position.step % every == 0):
            self._save(state, position, report)
        return report

    def _evaluation_due(self, position: Position) -> bool:
        """Whether this step's evaluation is still to be made; a run that was stopped there makes it when it goes on."""
        every = self._config.train.evaluate_every
        return bool(every) and position.step > 0 and position.step % every == 0 and not position.evaluated

    def _finish(self, state: TrainState, position: Position, log: MetricsLog) -> EvaluationReport:
        report = self._evaluate(state, position, log, final=True)
        if self._checkpoints.latest_step() != position.step:
            self._save(state, position, report)
        if self._leader:
            text = json.dumps({"step": position.step, **report.metrics()}, indent=1) + "\n"
            with written_whole(self._workdir / "evaluation.json") as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        return report

    def _evaluate(self, state: TrainState, position: Position, log: MetricsLog, *, final: bool) -> EvaluationReport:
        self._check_state(state, position)
        start = time.perf_counter()
        report = self._evaluator.evaluate(state.params, final=final)
        if not position.evaluated:
            log.write(position.step, report.metrics())
            position.evaluated = True
        if self._leader and report.metrics():
            logger.info("evaluation at step %d, %.0f s\n%s", position.step, time.perf_counter() - start, report.table())
        return report

    def _save(self, state: TrainState, position: Position, report: EvaluationReport | None = None) -> None:
        position.broken.share()
        self._check_state(state, position)
        recalls = None if report is None else report.mean_recalls()
        progress = position.to_json(self._config.train.batch_size)
        self._checkpoints.save(state, self._config, progress, recalls)

    def _check_metrics(self, position: Position) -> None:
        found = position.window.first_not_finite()
        if found is not None:
            ago, names = found
            raise self._stopped(f"what step {position.step - ago + 1} gave is not finite ({', '.join(names)})")

    def _check_state(self, state: TrainState, position: Position) -> None:
        """The metrics of a step are of before its update; what is evaluated and saved must be sound after it."""
        self._check_metrics(position)
        if not bool(self._all_finite(state)):
            raise self._stopped(f"the train state after step {position.step} is not finite")

    def _stopped(self, reason: str) -> UserError:
        self._checkpoints.wait()
        return UserError(
            f"{reason}; {self._checkpoints.last_good()}; lower optimizer.learning_rate or raise "
            "optimizer.warmup_steps, then start again or go on from there"
        )


def next_batch(batches: Iterator[dict[str, np.ndarray]], progress: Progress) -> dict[str, np.ndarray]:
    """The next batch; the time until it comes counts as waiting for data."""
    start = time.perf_counter()
    rows = next(batches)
    progress.waited(time.perf_counter() - start)
    return rows
