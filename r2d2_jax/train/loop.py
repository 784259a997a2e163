"""The training loop: steps, logs, evaluates and saves, and resumes where it stopped."""

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from r2d2_jax.arrays import Batch
from r2d2_jax.config.reading import Config
from r2d2_jax.data.workers import LostWorker
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.evaluator import Report
from r2d2_jax.evaluation.progress import before_each_batch
from r2d2_jax.paths import literal_path
from r2d2_jax.processes import by_first_process, check_shared, gather_json
from r2d2_jax.runs import EVALUATION, best_step, check_older, chooses, compared_by
from r2d2_jax.sharding import global_batch
from r2d2_jax.tasks.task import Metrics
from r2d2_jax.train.agreement import check_same_data, check_same_program, log_what_joined
from r2d2_jax.train.checkpoint import Checkpoints, settle_damage
from r2d2_jax.train.choice import Choice, best_of, epoch_ends, scores_of, write_evaluation
from r2d2_jax.train.compiled import compile_all_finite, compile_term_gradients, compile_train_step
from r2d2_jax.train.heartbeat import Heartbeat
from r2d2_jax.train.host_memory import fill_holes
from r2d2_jax.train.metrics import MetricsLog
from r2d2_jax.train.placement import placement
from r2d2_jax.train.progress import Progress
from r2d2_jax.train.setup import (
    Position,
    RunParts,
    build_batches,
    build_parts,
    check_newest_is_agreed,
    keep_vocabulary,
    only_run_in,
    start_or_go_on,
)
from r2d2_jax.train.signals import StopRequest
from r2d2_jax.train.state import TrainState, abstract_state

logger = logging.getLogger(__name__)

# How many steps the host may be ahead of the devices: enough to keep them busy, few enough to bound memory.
STEPS_IN_FLIGHT = 2


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    step: completed steps. finished: whether that is the end of the run. report: the last evaluation.
    unusable: how many records were, to all processes together. choice: of a run that chooses its best weights.
    asked_to_stop: whether a signal asked this process to stop, be it while the last checkpoint was saved.
    """

    step: int
    finished: bool
    report: Report | None
    unusable: int
    choice: Choice | None = None
    asked_to_stop: bool = False


class EvaluationStopped(Exception):
    """A run is to stop, and so has left an evaluation without its figures."""


def train(config: Config, workdir: Path, *, skip_damaged: bool = False) -> RunOutcome:
    """Trains the configured task in `workdir`, or resumes the run that is there.

    Args:
        config: the resolved configuration.
        workdir: where checkpoints, `vocab.txt`, `lineage.json`, `metrics.jsonl`, `status.json`, TensorBoard files and
            `evaluation.json` go. If it holds a checkpoint of the same configuration, the run resumes from the newest.
        skip_damaged: whether damaged checkpoints are renamed, and the run resumes from the newest whole one.

    Raises:
        UserError: bad configuration, data or checkpoint, processes that differ, another run in the same folder,
            numbers that are not finite, or a full disk.
    """
    with ExitStack() as ends:
        # The outermost, so that a signal finds it in place until the last checkpoint is on disk.
        stop = ends.enter_context(StopRequest())
        literal_path(workdir, "--workdir")  # refuses here, before anything is made, what Orbax cannot use
        check_same_program(config)
        parts = build_parts(config)
        check_same_data(config, parts.tokenizer.vocabulary)
        log_what_joined(parts.mesh)
        check_shared(workdir)
        ends.enter_context(only_run_in(workdir))
        length = (parts.total_steps, config.train.batch_size)
        heartbeat = ends.enter_context(Heartbeat(workdir, *length, config.train.stall_seconds))
        by_first_process(lambda: settle_damage(workdir, skip=skip_damaged))
        checkpoints = ends.enter_context(closing(Checkpoints(workdir, config.train, compared_by(config.to_dict()))))
        check_newest_is_agreed(checkpoints)
        state, position = start_or_go_on(config, parts, checkpoints, workdir)
        keep_vocabulary(parts.tokenizer, workdir, resuming=checkpoints.latest_step() is not None)
        run = Run(config, workdir, parts, checkpoints, stop, heartbeat, state, position)
        ends.enter_context(closing(run))
        outcome = run.go(build_batches(config, parts, position.step, run.lost_worker))
    return replace(outcome, asked_to_stop=stop.received is not None)


class Run:
    """The loop of one run, its state, and what it writes to.

    Args:
        config: the resolved configuration.
        workdir: the run's folder.
        parts: what the run is made of.
        checkpoints: of the run's folder.
        stop: whether to stop early.
        heartbeat: is told what the run is doing.
        state: the train state to start from.
        position: where the run is, beside its state.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        parts: RunParts,
        checkpoints: Checkpoints,
        stop: StopRequest,
        heartbeat: Heartbeat,
        state: TrainState,
        position: Position,
    ) -> None:
        self._config, self._workdir, self._parts = config, workdir, parts
        self._checkpoints, self._stop, self._heartbeat = checkpoints, stop, heartbeat
        self._state, self._position = state, position
        self._report: Report | None = None
        self._choice: Choice | None = None
        self._batches_evaluated = 0
        self._stage = compared_by(config.to_dict())
        self._leader = jax.process_index() == 0
        built = (parts.task, parts.optimizer, parts.mesh)
        if not self._done():  # a finished run that is started again is only evaluated
            logger.info("compiling the train step: seconds for a small model, minutes for a large one")
            start = time.perf_counter()
            self._step = compile_train_step(*built, config.train.batch_size)
            if every := config.train.weigh_terms_every:
                logger.info("compiling the gradients of every term, which the log gets every %d steps", every)
                self._term_gradients = compile_term_gradients(*built, config.train.batch_size)
            logger.info("compiled in %.0f s", time.perf_counter() - start)
        self._all_finite = compile_all_finite(*built)
        fill_holes()
        heartbeat.stepped(position.step)
        self._key = jax.random.key(config.train.seed)
        self._log = MetricsLog(workdir, position.step, self._leader, position.evaluated)
        self._progress = Progress(position.step, parts.total_steps, config.train.batch_size, self._leader)

    def close(self) -> None:
        """Ends the progress bar and the log."""
        self._progress.close()
        self._log.close()

    def go(self, batches: Generator[dict[str, np.ndarray], None, None]) -> RunOutcome:
        """Steps until the end of the run or a stop signal; closes the batches."""
        position = self._position
        try:
            with before_each_batch(self._stop_evaluation_if_agreed):
                with closing(batches):
                    finished = self._steps(batches)
                if finished:
                    self._finish()
        except EvaluationStopped:
            finished = False
        if not finished:
            self._leave()
        self._heartbeat.end(finished=finished)
        return RunOutcome(position.step, finished, self._report, position.unusable.unusable, self._choice)

    def _steps(self, batches: Iterator[dict[str, np.ndarray]]) -> bool:
        """Steps until the end of the run; False if it is to stop before.

        Raises:
            EvaluationStopped: it is to stop, and an evaluation was under way.
        """
        position, every = self._position, self._config.train.log_every
        stopped = self._stop.agreed(position.step)  # it may have come while everything was set up
        if not self._done() and not stopped:
            report = self._evaluate_if_due()
            if report is not None:
                self._save(report)  # without its score, this checkpoint could never be the best
        while not self._done() and not stopped:
            self._heartbeat.batch()
            rows = next_batch(batches, self._progress)
            self._heartbeat.stepping()
            self._one_step(rows)
            if position.step % every == 0:
                self._write_log()
            stopped = self._stop.agreed(position.step)
            if not self._done() and not stopped:
                self._milestone()
        return self._done()

    def lost_worker(self, error: LostWorker) -> None:
        """Asks to stop, as soon as all processes can; until then this one decodes itself."""
        if self._stop.received is None:  # or the same signal has ended both, as a batch system sends it
            logger.warning("%s. The run saves its state and stops", error)
            self._stop.failure = error

    def _done(self) -> bool:
        return self._position.step >= self._parts.total_steps

    def _one_step(self, rows: dict[str, np.ndarray]) -> None:
        position = self._position
        position.unusable.update(rows["problems"])
        batch = global_batch(self._parts.mesh, rows)
        weighed = self._weigh_terms(batch)  # before the step, which gives the state away
        self._state, metrics = self._step(self._state, batch, self._key)
        position.window.add(metrics | weighed)
        position.step += 1
        position.evaluated = False
        position.window.wait(STEPS_IN_FLIGHT)
        self._progress.stepped()
        self._heartbeat.stepped(position.step)

    def _weigh_terms(self, batch: Batch) -> Metrics:
        """The gradient of every term in what the next step sees, if it is due."""
        every = self._config.train.weigh_terms_every
        due = every and self._position.step % every == 0
        return self._term_gradients(self._state, batch, self._key) if due else {}

    def _write_log(self) -> None:
        position = self._position
        position.unusable.share()
        self._check_metrics()
        means = position.window.means()
        speed = self._progress.report(position.step, means)
        self._heartbeat.report(speed["pairs_per_second"])
        epoch = position.step * self._config.train.batch_size / position.unusable.epoch_size
        self._log.write(position.step, {"epoch": epoch, **means, "broken_records": position.unusable.unusable, **speed})

    def _milestone(self) -> None:
        """Evaluates and saves where the configured intervals say so."""
        every, step = self._config.train.checkpoint_every, self._position.step
        report = self._evaluate_if_due()
        if report is not None or (every and step % every == 0):
            with self._progress.pause():
                self._save(report)

    def _evaluate_if_due(self) -> Report | None:
        """Evaluates if this step is due and not in the log yet; a run stopped at one makes it when it resumes."""
        every, position = self._config.train.evaluate_every, self._position
        due = every and position.step and position.step % every == 0
        due = due or epoch_ends(self._config, position.unusable.epoch_size, position.step)
        if not due or position.evaluated:
            return None
        with self._progress.pause():
            return self._evaluate(final=False)

    def _finish(self) -> None:
        kept = self._checkpoints.latest_step() == self._position.step and self._position.evaluated
        report = self._evaluate(final=True)
        if not kept:
            self._save(report)
        if chooses(self._config.to_dict()):
            self._choice = self._choose(report)
        if self._leader:
            write_evaluation(self._workdir / EVALUATION, self._position.step, report, self._choice)

    def _choose(self, report: Report) -> Choice:
        """Goes back to the weights that are best on validation, and measures the test split with them."""
        config, position, evaluator = self._config, self._position, self._parts.evaluator
        self._checkpoints.wait()
        step = gather_json(best_step(self._checkpoints.directory, self._stage))[0] or position.step
        scores = scores_of(position.validations, self._stage, config, position.unusable.epoch_size)
        if scores and (best := best_of(scores)) != step:
            logger.warning(
                "the weights of step %d were the best on validation, and their checkpoint is not there; step %d is the "
                "best of those that are",
                best, step,
            )  # fmt: skip
        if step != position.step:
            logger.info("going back to step %d", step)
            by_first_process(lambda: check_older(self._checkpoints.directory, step))
            del self._state  # makes room
            built = (self._parts.task, self._parts.optimizer, self._parts.mesh)
            self._state, _ = self._checkpoints.restore(abstract_state(*built), config, step)
            report = evaluator.evaluate(self._state.params, final=True)
        test = None
        if evaluator.has_test:
            logger.info("measuring the test split with the weights of step %d", step)
            test = evaluator.test(self._state.params, report)
            self._log.write(position.step, {"best_step": float(step), **test.metrics()})
        return Choice(step, self._stage, scores, report, test)

    def _leave(self) -> None:
        """Saves what a stop signal or a lost worker interrupted, unless nothing is new.

        Raises:
            UserError: this process lost a worker.
        """
        step = self._position.step
        if step and self._checkpoints.latest_step() != step:
            self._save()
        if failure := self._stop.failure:
            self._checkpoints.wait()
            raise UserError(
                f"{failure}; then run the same command again, which resumes: {self._checkpoints.last_good()}"
            ) from failure
        name = self._stop.received.name if self._stop.received else "another process"
        logger.info("stopped by %s after step %d; run the same command again to resume", name, step)

    def _evaluate(self, *, final: bool) -> Report:
        self._heartbeat.evaluating()
        self._check_state()
        position, start = self._position, time.perf_counter()
        if self._config.data.validation_split or self._config.data.foil_split:
            logger.info("evaluating after step %d", position.step)
        report = self._parts.evaluator.evaluate(self._state.params, final=final)
        if not position.evaluated:
            self._log.write(position.step, report.metrics())
            position.evaluated = True
            if scores := report.scores():
                position.validations.append((position.step, scores))
        if self._leader and report.metrics():
            table = "" if final else f"\n{report.table()}"  # the program prints the last one
            logger.info("evaluation at step %d, %.0f s%s", position.step, time.perf_counter() - start, table)
        if self._report is None:
            fill_holes()  # the first evaluation has compiled its forwards
        self._report = report
        return report

    def _stop_evaluation_if_agreed(self) -> None:
        """A preempted machine has less time than an evaluation takes; the resumed run makes it anew."""
        self._batches_evaluated += 1
        if self._stop.agreed(self._batches_evaluated):
            raise EvaluationStopped

    def _save(self, report: Report | None = None) -> None:
        self._heartbeat.saving()
        self._position.unusable.share()
        self._check_state()
        scores = None if report is None else report.scores()
        progress = self._position.to_json(self._config.train.batch_size) | {"placement": placement(self._parts.mesh)}
        self._log.flush()
        self._checkpoints.save(self._state, self._config, progress, scores)

    def _check_metrics(self) -> None:
        found = self._position.window.first_not_finite()
        if found is not None:
            ago, names = found
            step = self._position.step - ago + 1
            raise self._not_finite(f"what step {step} gave is not finite ({', '.join(names)})")

    def _check_state(self) -> None:
        """Metrics describe the parameters before the update; so the updated state is checked, too."""
        self._check_metrics()
        if not bool(self._all_finite(self._state)):
            raise self._not_finite(f"the train state after step {self._position.step} is not finite")

    def _not_finite(self, reason: str) -> UserError:
        self._checkpoints.wait()
        return UserError(
            f"{reason}; {self._checkpoints.last_good()}; lower optimizer.learning_rate or raise "
            "optimizer.warmup_steps, then start anew or resume from there"
        )


def next_batch(batches: Iterator[dict[str, np.ndarray]], progress: Progress) -> dict[str, np.ndarray]:
    """The next batch; the time until it comes counts as waiting for data."""
    start = time.perf_counter()
    rows = next(batches)
    progress.waited(time.perf_counter() - start)
    return rows
