"""What an evaluation measures: recall and foil accuracy, as numbers for the log and as a table for people."""

from dataclasses import dataclass

from r2d2_jax.arrays import Params
from r2d2_jax.config.run import EvaluationConfig
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.evaluation.foil import CHANCE, FoilReport, check_foil_split, evaluate_foils
from r2d2_jax.evaluation.retrieval import RetrievalReport, RetrievalSettings, evaluate_retrieval
from r2d2_jax.evaluation.scorer import Scorer


@dataclass(frozen=True)
class EvaluationReport:
    """Retrieval on a split, and choosing between caption and foil; None where there is no such split.

    role: what the split is to the run, "validation" or "test".
    """

    retrieval: RetrievalReport | None
    foil: FoilReport | None
    images: int
    captions: int
    foil_images: int
    role: str = "validation"

    def metrics(self) -> dict[str, float]:
        """Flat names for the log, such as "validation/reranked/i2t_r1" and "foil/dual", in per cent."""
        result: dict[str, float] = {}
        if self.retrieval is not None:
            for stage in ("dual", "cross", "reranked", "chance"):
                for name, value in (getattr(self.retrieval, stage) or {}).items():
                    result[f"{self.role}/{stage}/{name}"] = value
        if self.foil is not None:
            for stage in ("dual", "reranked", "match"):
                if getattr(self.foil, stage) is not None:
                    result[f"foil/{stage}"] = getattr(self.foil, stage)
        return result

    def scores(self) -> dict[str, float]:
        """The mean of the recalls of the asked directions, in per cent, of each stage that was measured."""
        stages = {} if self.retrieval is None else {"dual": self.retrieval.dual, "reranked": self.retrieval.reranked}
        return {stage: recalls["mean"] for stage, recalls in stages.items() if recalls}

    def table(self) -> str:
        """A table for people: dual encoder, re-ranked and chance side by side, in per cent."""
        lines = [f"{'per cent':<28}{'dual':>8}{'re-ranked':>11}{'chance':>8}"]
        if self.retrieval is not None:
            on = "" if self.role == "validation" else f" on {self.role}"
            lines.append(f"retrieval{on}, {self.images} images, {self.captions} captions")
            lines += _recall_lines(self.retrieval)
        if self.foil is not None:
            lines.append(f"caption or foil, {self.foil_images} images")
            lines.append(_line("  true caption chosen", self.foil.dual, self.foil.reranked, CHANCE))
            if self.foil.match is not None:
                lines.append(_line("  by match alone", None, self.foil.match, CHANCE))
        return "\n".join(lines)


RECALL_LABELS = (
    *((f"{way}_r{cutoff}", f"  {text} R@{cutoff}") for way, text in (("i2t", "image to text"), ("t2i", "text to image"))
      for cutoff in (1, 5, 10)),
    ("r10", "  R@10, both ways"),
    ("mean", "  mean of the {count}"),
)  # fmt: skip


def _recall_lines(retrieval: RetrievalReport) -> list[str]:
    reranked, count = retrieval.reranked or {}, "six" if "r10" in retrieval.dual else "three"
    return [
        _line(label.format(count=count), retrieval.dual[name], reranked.get(name), retrieval.chance[name])
        for name, label in RECALL_LABELS
        if name in retrieval.dual
    ]


def _line(label: str, dual: float | None, reranked: float | None, chance: float) -> str:
    shown = ["-" if value is None else f"{value:.1f}" for value in (dual, reranked)]
    return f"{label:<28}{shown[0]:>8}{shown[1]:>11}{chance:>8.1f}"


class RetrievalEvaluator:
    """Evaluates parameters on a validation, a foil and a test split.

    Args:
        settings: how many candidates are re-ranked, and when.
        scorer: encodes splits and matches pairs.
        validation, foil, test: the splits, or None.

    Raises:
        UserError: the foil split is not one.
    """

    def __init__(
        self,
        settings: EvaluationConfig,
        scorer: Scorer,
        validation: EvaluationSplit | None,
        foil: EvaluationSplit | None,
        test: EvaluationSplit | None = None,
    ) -> None:
        if foil is not None:
            check_foil_split(foil)
        self._settings, self._scorer = settings, scorer
        self._validation, self._foil, self._test = validation, foil, test
        self.has_test = test is not None

    def evaluate(self, params: Params, *, final: bool) -> EvaluationReport:
        """Measures everything there is to measure.

        Args:
            params: the model's parameters.
            final: the last evaluation of a run, which always re-ranks if re-ranking is configured at all.
        """
        asked = final or self._settings.rerank_during_training
        rerank = self._settings.rerank_candidates if asked else 0
        return self._report(self._validation, self._foil, params, rerank, "validation")

    def test(self, params: Params, validation: EvaluationReport) -> EvaluationReport:
        """Measures the test split, re-ranked if re-ranking is configured at all."""
        return self._report(self._test, None, params, self._settings.rerank_candidates, "test")

    def _report(
        self, split: EvaluationSplit | None, foil: EvaluationSplit | None, params: Params, rerank: int, role: str
    ) -> EvaluationReport:
        return EvaluationReport(
            self._retrieval(split, params, rerank),
            self._foils(foil, params, rerank > 0),
            images=split.num_images if split else 0,
            captions=len(split.captions) if split else 0,
            foil_images=foil.num_images if foil else 0,
            role=role,
        )

    # One split after the other, so that the tokens of one have left the devices when those of the next arrive.

    def _retrieval(self, split: EvaluationSplit | None, params: Params, rerank: int) -> RetrievalReport | None:
        if split is None:
            return None
        settings = RetrievalSettings(rerank=rerank, directions=self._settings.directions)
        return evaluate_retrieval(self._scorer, params, split, settings)

    def _foils(self, split: EvaluationSplit | None, params: Params, rerank: bool) -> FoilReport | None:
        if split is None:
            return None
        encoded = self._scorer.encode(params, split, keep_tokens=rerank)
        return evaluate_foils(self._scorer, params, encoded, rerank=rerank)
