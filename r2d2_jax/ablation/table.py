"""The table of an ablation: every score of every variant over its seeds, beside the full method, and what it costs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from r2d2_jax.ablation.plan import FULL, Plan
from r2d2_jax.ablation.statistics import interval, mean_and_spread, paired_differences

Results = Mapping[str, Mapping[int, Mapping[str, float]]]  # variant -> seed -> name in the log -> value


class Score(NamedTuple):
    """A figure of two stages: its title, its names in the log by the dual encoder and by the cross encoders' stage, and
    the name of that."""

    title: str
    dual: str
    second: str
    second_title: str = "re-ranked"


# In per cent, all of them. What is not measured is left out.
SCORES = {
    "recall": Score("R@M", "validation/dual/mean", "validation/reranked/mean"),
    "test_recall": Score("R@M, test", "test/dual/mean", "test/reranked/mean"),
    "foil": Score("caption or foil", "foil/dual", "foil/reranked"),
    "auc": Score("AUC", "validation/dual/auc", "validation/match/auc", "match"),
    "test_auc": Score("AUC, test", "test/dual/auc", "test/match/auc", "match"),
}
DUAL, SECOND, LAST = "dual", "second", "last"
STAGES = (DUAL, SECOND, LAST)


def ablation_document(plan: Plan, results: Results, costs: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is known, as plain JSON values; all scores in per cent.

    Args:
        plan: of the ablation.
        results: of every finished run.
        costs: as `cost.read_costs` gives them.

    Returns:
        `seeds`; `scores`, what was measured: the title of each and of its second stage; `measured_on`; and `variants`,
        each with its `changes`, finished `seeds`, `scores` (score -> stage -> values by seed, mean, spread),
        `differences` to the full method (likewise, with an interval), `figures` (every name in the log -> mean and
        spread) and costs. The stages are "dual"; "second", that of the cross encoders; and "last", which is the second
        where there is one.
    """
    measured = {name for runs in results.values() for figures in runs.values() for name in figures}
    scores = {key: score for key, score in SCORES.items() if {score.dual, score.second} & measured}
    full = _scores(results.get(FULL, {}), scores)
    variants = {}
    for name, changes in plan.variants.items():
        runs = results.get(name, {})
        own = _scores(runs, scores)
        variants[name] = {
            "changes": changes,
            "seeds": list(runs),
            "scores": {key: {stage: _summary(own[key][stage]) for stage in STAGES} for key in scores},
            "differences": {} if name == FULL else _differences(own, full),
            "figures": _figures(runs),
            **_cost(costs, name),
        }
    return {
        "seeds": list(plan.seeds),
        "scores": {key: {"title": score.title, "second": score.second_title} for key, score in scores.items()},
        "measured_on": costs.get("measured_on"),
        "variants": variants,
    }


_Values = dict[str, dict[str, dict[int, float]]]  # score -> stage -> seed -> value


def _scores(runs: Mapping[int, Mapping[str, float]], scores: Mapping[str, Score]) -> _Values:
    found: _Values = {}
    for key, score in scores.items():
        dual, second = (
            {seed: figures[name] for seed, figures in runs.items() if name in figures}
            for name in (score.dual, score.second)
        )
        found[key] = {DUAL: dual, SECOND: second, LAST: second or dual}
    return found


def _differences(own: _Values, full: _Values) -> dict[str, Any]:
    return {
        key: {stage: _summary(paired_differences(own[key][stage], full[key][stage]), paired=True) for stage in STAGES}
        for key in own
    }


def _summary(values: dict[int, float], *, paired: bool = False) -> dict[str, Any] | None:
    """Mean and spread, of differences also the interval; None without a value."""
    if not values:
        return None
    mean, spread = mean_and_spread(list(values.values()))
    summary: dict[str, Any] = {"values": {str(seed): value for seed, value in values.items()}}
    summary |= {"mean": mean, "spread": spread}
    return summary | ({"interval": interval(list(values.values()))} if paired else {})


def _figures(runs: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    names = dict.fromkeys(name for figures in runs.values() for name in figures)
    found = {}
    for name in names:
        mean, spread = mean_and_spread([figures[name] for figures in runs.values() if name in figures])
        found[name] = {"mean": mean, "spread": spread}
    return found


def _cost(costs: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """None for what was not measured."""
    by_name = costs.get("variants", {})
    own, full = by_name.get(name, {}), by_name.get(FULL, {})
    adds, full_adds = own.get("multiply_adds_per_pair"), full.get("multiply_adds_per_pair")
    return {
        "multiply_adds_per_pair": adds,
        "relative_multiply_adds": adds / full_adds if adds and full_adds else None,
        "relative_speed": own.get("relative_speed"),
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The document as tables for people."""
    parts = ["# Ablation", _scores_table(document), _differences_table(document), _costs_table(document)]
    return "\n\n".join([*filter(None, parts), _changes(document)]) + "\n"


def _scores_table(document: Mapping[str, Any]) -> str:
    titles = [
        f"{score['title']}, {stage}" for score in document["scores"].values() for stage in ("dual", score["second"])
    ]
    rows = []
    for name, found in document["variants"].items():
        cells = []
        for by_stage in found["scores"].values():
            cells += [_plus_minus(by_stage[DUAL]), _plus_minus(by_stage[SECOND], "none" if by_stage[DUAL] else "-")]
        rows.append([name, str(len(found["seeds"])), *cells])
    seeds = ", ".join(map(str, document["seeds"]))
    return (
        f"Per cent, mean over the seeds ({seeds}) and, after ±, their sample standard deviation; none where "
        "a variant has no such stage.\n\n" + _table(["variant", "seeds", *titles], rows)
    )


def _differences_table(document: Mapping[str, Any]) -> str:
    titles = [f"{score['title']}, {stage}" for score in document["scores"].values() for stage in ("dual", "last stage")]
    rows = []
    for name, found in document["variants"].items():
        if name != FULL:
            cells = [_signed(by_stage[stage]) for by_stage in found["differences"].values() for stage in (DUAL, LAST)]
            rows.append([name, *cells])
    last = " or ".join(dict.fromkeys(score["second"] for score in document["scores"].values()))
    return (
        "## Difference to the full method\n\nMean difference between runs of the same seed and, in brackets, its 95 % "
        f"interval by Student's t. The last stage is {last} where a variant has that, otherwise dual.\n\n"
        + _table(["variant", *titles], rows)
    )


def _costs_table(document: Mapping[str, Any]) -> str:
    unit, prefix = _unit(document)
    rows = []
    for name, found in document["variants"].items():
        adds = found["multiply_adds_per_pair"]
        shares = [_number(found[key], ".3f") for key in ("relative_multiply_adds", "relative_speed")]
        rows.append([name, _number(adds and adds / unit, ".1f"), *shares])
    where = f", on {document['measured_on']}" if document["measured_on"] else ""
    return (
        "## Cost\n\nMultiply-adds of the forward per pair, counted by XLA; steps per second of a variant over those of "
        f"the full method, steps taken in turn{where}.\n\n"
        + _table(["variant", f"{prefix} multiply-adds per pair", "of the full method", "relative speed"], rows)
    )


def _changes(document: Mapping[str, Any]) -> str:
    lines = []
    for name, found in document["variants"].items():
        changes = " ".join(f"`{key}={value}`" for key, value in found["changes"].items())
        lines.append(f"- {name}: {changes or 'the configuration itself'}")
    return "## What each changes\n\n" + "\n".join(lines)


def _unit(document: Mapping[str, Any]) -> tuple[float, str]:
    largest = max((found["multiply_adds_per_pair"] or 0 for found in document["variants"].values()), default=0)
    return (1e9, "G") if largest >= 1e9 else (1e6, "M")


def _plus_minus(summary: Mapping[str, Any] | None, absent: str = "-") -> str:
    if summary is None:
        return absent
    return f"{summary['mean']:.2f}" + ("" if summary["spread"] is None else f" ± {summary['spread']:.2f}")


def _signed(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "-"
    ends = summary["interval"]
    return f"{summary['mean']:+.2f}" + ("" if ends is None else f" ({ends[0]:+.2f} to {ends[1]:+.2f})")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
