"""The end of a run that chooses: the weights that are best on validation, and their one test."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d2_jax.atomic import written_whole
from r2d2_jax.config.reading import Config
from r2d2_jax.evaluation.evaluator import Report

Scores = tuple[tuple[int, float, float], ...]  # (step, epoch, score) of every validation of a run, in order


@dataclass(frozen=True)
class Choice:
    """Which weights a run chose, and what they are worth.

    step: of the checkpoint that is best on validation.
    stage: what it was compared by, such as "reranked" or "match".
    scores: of every validation of the run that measured this stage.
    validation: of the chosen weights. test: of the same weights, measured once; None without a test split.
    """

    step: int
    stage: str
    scores: Scores
    validation: Report
    test: Report | None

    def metrics(self) -> dict[str, float]:
        """Of both splits, by the names of the log."""
        return self.validation.metrics() | (self.test.metrics() if self.test else {})

    def table(self) -> str:
        """Every validation, the chosen one marked; then the tables of the chosen weights."""
        lines = [f"{'epoch':>8}{'step':>10}{f'validation, {self.stage}':>24}"]
        for step, epoch, score in self.scores:
            mark = "  chosen: these weights are measured below" if step == self.step else ""
            lines.append(f"{epoch:>8.4g}{step:>10}{score:>24.2f}{mark}")
        lines.append(self.validation.table())
        if self.test is not None:
            lines.append(f"the same weights on the test split, measured once\n{self.test.table()}")
        return "\n".join(lines)


def epoch_ends(config: Config, records: int, step: int) -> bool:
    """Whether a step ends one of the spans of `train.evaluate_every_epochs`, to the nearest step."""
    span = config.train.evaluate_every_epochs * records / config.train.batch_size
    if not span or not step:
        return False
    return round(max(1, round(step / span)) * span) == step


def scores_of(validations: Iterable[tuple[int, dict[str, float]]], stage: str, config: Config, records: int) -> Scores:
    """The scores of one stage in (step, scores by stage); evaluations without it have none."""
    size = config.train.batch_size
    return tuple((step, step * size / records, scores[stage]) for step, scores in validations if stage in scores)


def best_of(scores: Scores) -> int:
    """The step with the best score, the last of equal ones; there must be one."""
    return max(scores, key=lambda found: (found[2], found[0]))[0]


def write_evaluation(path: Path, step: int, report: Report, choice: Choice | None) -> None:
    """Writes `evaluation.json`: the last evaluation, or the choice with every validation before it."""
    if choice is None:
        values: dict[str, Any] = {"step": step, **report.metrics()}
    else:
        validations = [{"step": at, "epoch": epoch, choice.stage: score} for at, epoch, score in choice.scores]
        values = {"step": choice.step, **choice.metrics(), "last_step": step, "validations": validations}
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
