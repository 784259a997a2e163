"""The table of made-up runs."""

import json
from typing import Any

import pytest
import scipy.stats

from r2d2_jax.ablation.plan import Plan
from r2d2_jax.ablation.table import ablation_document, markdown

PLAN = Plan({}, {"full": {}, "prd2": {"model.cross.layers": 0}, "later": {"loss.fgd": False}}, (0, 1, 2))
RESULTS = {
    "full": {
        seed: {"validation/dual/mean": 60.0 + seed, "validation/reranked/mean": 70.0 + seed, "foil/dual": 80.0,
               "foil/reranked": 90.0 + 2 * seed}
        for seed in (0, 1, 2)
    },
    "prd2": {seed: {"validation/dual/mean": 61.0 - seed, "foil/dual": 75.0 + seed} for seed in (2, 0)},
    "later": {},
}  # fmt: skip
COSTS = {
    "measured_on": "2 x a device",
    "variants": {
        "full": {"multiply_adds_per_pair": 150e9, "relative_speed": 1.0},
        "prd2": {"multiply_adds_per_pair": 90e9, "relative_speed": 1.5},
    },
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The whole document, as it comes back from its file."""
    return json.loads(json.dumps(ablation_document(PLAN, RESULTS, COSTS)))


def test_scores_are_means_over_the_seeds_with_their_spread(document: dict[str, Any]) -> None:
    full = document["variants"]["full"]
    assert full["scores"]["recall"]["dual"] == {
        "values": {"0": 60.0, "1": 61.0, "2": 62.0},
        "mean": 61.0,
        "spread": 1.0,
    }
    assert full["scores"]["foil"]["second"]["mean"] == 92.0
    assert full["scores"]["foil"]["second"]["spread"] == 2.0
    assert full["figures"]["foil/reranked"] == {"mean": 92.0, "spread": 2.0}
    assert list(document["scores"]) == ["recall", "foil"]


def test_a_variant_without_re_ranking_has_none_and_ends_with_the_dual_encoder(document: dict[str, Any]) -> None:
    prd2 = document["variants"]["prd2"]
    assert prd2["seeds"] == [2, 0]
    assert prd2["scores"]["foil"]["second"] is None
    assert prd2["scores"]["foil"]["last"] == prd2["scores"]["foil"]["dual"]
    assert prd2["differences"]["foil"]["second"] is None


def test_differences_are_paired_by_seed(document: dict[str, Any]) -> None:
    """Of foils: the dual encoder of PRD2 with that of the full method, 80 and 80; with its last stage, 94 and 90."""
    foil = document["variants"]["prd2"]["differences"]["foil"]
    assert foil["dual"]["values"] == {"2": -3.0, "0": -5.0}
    assert foil["last"]["values"] == {"2": -17.0, "0": -15.0}
    low, high = scipy.stats.ttest_1samp([-17.0, -15.0], 0.0).confidence_interval(0.95)
    assert foil["last"]["interval"] == pytest.approx([low, high])
    assert document["variants"]["full"]["differences"] == {}


def test_costs(document: dict[str, Any]) -> None:
    prd2, later = document["variants"]["prd2"], document["variants"]["later"]
    assert (prd2["relative_multiply_adds"], prd2["relative_speed"]) == (0.6, 1.5)
    assert (later["multiply_adds_per_pair"], later["relative_multiply_adds"], later["relative_speed"]) == (None,) * 3


def test_markdown(document: dict[str, Any]) -> None:
    text = markdown(document)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| variant | seeds | R@M, dual | R@M, re-ranked | caption or foil, dual | caption or foil, re-ranked |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| full | 3 | 61.00 ± 1.00 | 71.00 ± 1.00 | 80.00 ± 0.00 | 92.00 ± 2.00 |",
        "| prd2 | 2 | 60.00 ± 1.41 | none | 76.00 ± 1.41 | none |",
        "| later | 0 | - | - | - | - |",
        "| variant | R@M, dual | R@M, last stage | caption or foil, dual | caption or foil, last stage |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| prd2 | -1.00 (-26.41 to +24.41) | -11.00 (-36.41 to +14.41) | -4.00 (-16.71 to +8.71) | "
        "-16.00 (-28.71 to -3.29) |",
        "| later | - | - | - | - |",
        "| variant | G multiply-adds per pair | of the full method | relative speed |",
        "| --- | ---: | ---: | ---: |",
        "| full | 150.0 | 1.000 | 1.000 |",
        "| prd2 | 90.0 | 0.600 | 1.500 |",
        "| later | - | - | - |",
    ]
    assert "on 2 x a device" in text
    assert "- prd2: `model.cross.layers=0`" in text


def test_before_anything_is_done() -> None:
    document = ablation_document(PLAN, {}, {})
    assert document["scores"] == {}
    assert "| full | 0 |" in markdown(document)


def test_a_fine_tuning_for_matching_has_its_auc() -> None:
    figures = {"validation/dual/auc": 70.0, "validation/match/auc": 80.0, "validation/match/accuracy": 75.0}
    document = ablation_document(PLAN, {"full": {0: figures}}, {})
    assert "| full | 1 | 70.00 | 80.00 |" in markdown(document)
    assert "AUC, match" in markdown(document)
