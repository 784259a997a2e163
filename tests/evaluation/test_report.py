"""Names in the log, the table, what the best checkpoint may be chosen by, and when an evaluation re-ranks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from r2d2_jax.config.run import EvaluationConfig
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation import report as module
from r2d2_jax.evaluation.foil import FoilReport
from r2d2_jax.evaluation.report import EvaluationReport, RetrievalEvaluator
from r2d2_jax.evaluation.retrieval import RetrievalReport

NAMES = [f"{way}_{at}" for way in ("i2t", "t2i") for at in ("r1", "r5", "r10", "mean")] + ["mean", "r10"]


def recalls(first: float) -> dict[str, float]:
    return {name: first + place for place, name in enumerate(NAMES)}


FULL = EvaluationReport(
    RetrievalReport(recalls(10.0), recalls(30.0), recalls(0.0), recalls(20.0)),
    FoilReport(51.26, 62.5, 73.04),
    images=100,
    captions=200,
    foil_images=40,
)
DUAL = EvaluationReport(RetrievalReport(recalls(10.0), None, recalls(0.0)), FoilReport(51.26, None, None), 100, 200, 40)
NOTHING = EvaluationReport(None, None, 0, 0, 0)


def test_metrics() -> None:
    expected = {f"validation/{stage}/{name}" for stage in ("dual", "cross", "reranked", "chance") for name in NAMES}
    assert set(FULL.metrics()) == expected | {"foil/dual", "foil/reranked", "foil/match"}
    assert FULL.metrics()["validation/reranked/i2t_r5"] == 31.0
    assert FULL.metrics()["foil/match"] == 73.04
    assert set(DUAL.metrics()) == {name for name in expected if "dual" in name or "chance" in name} | {"foil/dual"}
    assert NOTHING.metrics() == {}


def test_scores() -> None:
    assert FULL.scores() == {"dual": 18.0, "reranked": 38.0}
    assert DUAL.scores() == {"dual": 18.0}
    assert NOTHING.scores() == {}


def test_table() -> None:
    assert FULL.table().split("\n") == [
        "per cent                        dual  re-ranked  chance",
        "retrieval, 100 images, 200 captions",
        "  image to text R@1             10.0       30.0     0.0",
        "  image to text R@5             11.0       31.0     1.0",
        "  image to text R@10            12.0       32.0     2.0",
        "  text to image R@1             14.0       34.0     4.0",
        "  text to image R@5             15.0       35.0     5.0",
        "  text to image R@10            16.0       36.0     6.0",
        "  R@10, both ways               19.0       39.0     9.0",
        "  mean of the six               18.0       38.0     8.0",
        "caption or foil, 40 images",
        "  true caption chosen           51.3       62.5    50.0",
        "  by match alone                   -       73.0    50.0",
    ]


def test_table_without_reranking_or_splits() -> None:
    lines = DUAL.table().split("\n")
    assert lines[2] == "  image to text R@1             10.0          -     0.0"
    assert lines[-1] == "  true caption chosen           51.3          -    50.0"
    assert len(NOTHING.table().split("\n")) == 1


class FakeScorer:
    """Remembers whether tokens were asked for."""

    def __init__(self) -> None:
        self.kept: list[bool] = []

    def encode(self, params: Any, split: Any, *, keep_tokens: bool) -> Any:
        self.kept.append(keep_tokens)
        return split


@pytest.mark.parametrize(
    "candidates, during, final, expected",
    [(16, True, False, 16), (16, True, True, 16), (16, False, False, 0), (16, False, True, 16), (0, True, True, 0)],
)
def test_when_an_evaluation_reranks(
    candidates: int, during: bool, final: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "evaluate_retrieval", lambda scorer, params, split, how: asked.append(how.rerank))
    monkeypatch.setattr(module, "evaluate_foils", lambda scorer, params, split, rerank: asked.append(rerank))
    settings = EvaluationConfig(candidates, during)
    pairs = np.stack([np.repeat(np.arange(3), 2), np.arange(6)], axis=1)
    split: Any = SimpleNamespace(num_images=3, captions=[""] * 6, pairs=pairs, image_ids=[])
    scorer: Any = FakeScorer()
    report = RetrievalEvaluator(settings, scorer, split, split).evaluate({}, final=final)
    assert asked == [expected, expected > 0]
    assert scorer.kept == [expected > 0]
    assert (report.images, report.captions, report.foil_images) == (3, 6, 3)


def test_evaluator_refuses_a_foil_split_that_is_none() -> None:
    split: Any = SimpleNamespace(num_images=1, captions=["a"], pairs=np.zeros((1, 2), int), image_ids=["x"])
    scorer: Any = FakeScorer()
    with pytest.raises(UserError, match="record 'x' has 1 caption"):
        RetrievalEvaluator(EvaluationConfig(), scorer, None, split)
    assert RetrievalEvaluator(EvaluationConfig(), scorer, None, None).evaluate({}, final=True).metrics() == {}
