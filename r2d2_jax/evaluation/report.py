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
    """Retrieval on the validation split, and choosing between caption and foil; None where there is no such split."""

    retrieval: RetrievalReport | None
    foil: FoilReport | None
    images: int
    captions: int
    foil_images: int

    def metrics(self) -> dict[str, float]:
        """Flat names for the log, such as "validation/reranked/i2t_r1" and "foil/dual", in per cent."""
        result: dict[str, float] = {}
        if self.retrieval is not None:
            for stage in ("dual", "cross", "reranked", "chance"):
                for name, value in (getattr(self.retrieval, stage) or {}).items():
                    result[f"validation/{stage}/{name}"] = value
        if self.foil is not None:
            for stage in ("dual", "reranked", "match"):
                if getattr(self.foil, stage) is not None:
                    result[f"foil/{stage}"] = getattr(self.foil, stage)
        return result

    def mean_recalls(self) -> dict[str, float]:
        """The mean of the six recalls, in per cent, of each stage of retrieval that was measured."""
        stages = {} if self.retrieval is None else {"dual": self.retrieval.dual, "reranked": self.retrieval.reranked}
        return {stage: recalls["mean"] for stage, recalls in stages.items() if recalls}

    def table(self) -> str:
        """A table for people: dual encoder, re-ranked and chance side by side, in per cent."""
        lines = [f"{'per cent':<28}{'dual':>8}{'re-ranked':>11}{'chance':>8}"]
        if self.retrieval is not None:
            lines.append(f"retrieval, {self.images} images, {self.captions} captions")
            lines += _recall_lines(self.retrieval)
        if self.foil is not None:
            lines.append(f"caption or foil, {self.foil_images} images")
            lines.append(_line("  true caption chosen", self.foil.dual, self.foil.reranked, CHANCE))
            if self.foil.match is not None:
                lines.append(_line("  by match alone", None, self.foil.match, CHANCE))
        return "\n".join(lines)


_RECALL_LABELS = (
    *((f"{way}_r{cutoff}", f"  {text} R@{cutoff}") for way, text in (("i2t", "image to text"), ("t2i", "text to image"))
      for cutoff in (1, 5, 10)),
    ("r10", "  R@10, both ways"),
    ("mean", "  mean of the six"),
)  # fmt: skip


def _recall_lines(retrieval: RetrievalReport) -> list[str]:
    reranked = retrieval.reranked or {}
    return [
        _line(label, retrieval.dual[name], reranked.get(name), retrieval.chance[name]) for name, label in _RECALL_LABELS
    ]


def _line(label: str, dual: float | None, reranked: float | None, chance: float) -> str:
    shown = ["-" if value is None else f"{value:.1f}" for value in (dual, reranked)]
    return f"{label:<28}{shown[0]:>8}{shown[1]:>11}{chance:>8.1f}"


class Evaluator:
    """Evaluates parameters on a validation and a foil split.

    Args:
        settings: how many candidates are re-ranked, and when.
        scorer: encodes splits and matches pairs.
        validation, foil: the splits, or None.

    Raises:
        UserError: the foil split is not one.
    """

    def __init__(
        self,
        settings: EvaluationConfig,
        scorer: Scorer,
        validation: EvaluationSplit | None,
        foil: EvaluationSplit | None,
    ) -> None:
        if foil is not None:
            check_foil_split(foil)
        self._settings, self._scorer = settings, scorer
        self._validation, self._foil = validation, foil

    def evaluate(self, params: Params, *, final: bool) -> EvaluationReport:
        """Measures everything there is to measure.

        Args:
            params: the model's parameters.
            final: the last evaluation of a run, which always re-ranks if re-ranking is configured at all.
        """
        asked = final or self._settings.rerank_during_training
        rerank = self._settings.rerank_candidates if asked else 0
        return EvaluationReport(
            self._retrieval(params, rerank),
            self._foils(params, rerank > 0),
            images=self._validation.num_images if self._validation else 0,
            captions=len(self._validation.captions) if self._validation else 0,
            foil_images=self._foil.num_images if self._foil else 0,
        )

    # One split after the other, so that the tokens of one have left the devices when those of the next arrive.

    def _retrieval(self, params: Params, rerank: int) -> RetrievalReport | None:
        if self._validation is None:
            return None
        return evaluate_retrieval(self._scorer, params, self._validation, RetrievalSettings(rerank=rerank))

    def _foils(self, params: Params, rerank: bool) -> FoilReport | None:
        if self._foil is None:
            return None
        encoded = self._scorer.encode(params, self._foil, keep_tokens=rerank)
        return evaluate_foils(self._scorer, params, encoded, rerank=rerank)
