"""What was trained and what was measured, as sections: tables of what configuration, lineage and evaluation hold."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from r2d2_jax.evaluation.foil import CHANCE
from r2d2_jax.evaluation.report import RECALL_LABELS
from r2d2_jax.evaluation.tables import table as evaluation_table
from r2d2_jax.lineage import NOT_RECORDED, described
from r2d2_jax.report.markup import escaped, paragraph, preformatted, section, table
from r2d2_jax.report.subject import Subject
from r2d2_jax.trees import flat

TASKS = {
    "pretraining": "pre-training",
    "retrieval": "fine-tuning for retrieval",
    "matching": "fine-tuning for matching",
}
TERMS = {
    "gcpr": "GCPR, a softmax over the pairs of all devices",
    "tgd": "target-guided distillation: GCPR with the teacher's soft targets and a weighted queue",
    "fgr": "FGR, match or no match with hard negatives",
    "mlm": "masked-language modelling",
    "fgd": "feature-guided distillation",
}
STAGES = {"dual": "dual", "cross": "cross alone", "reranked": "re-ranked", "match": "match", "chance": "chance"}
# Names of figures in tables; others are shown with spaces for underscores.
LABELS = {name: label.strip().format(count="recalls") for name, label in RECALL_LABELS} | {
    "i2t_mean": "image to text, mean",
    "t2i_mean": "text to image, mean",
    "auc": "AUC",
    "half_accuracy": "accuracy at 0.5",
}


def trained_section(subject: Subject) -> str:
    """What the model is and what led to it."""
    model, config = subject.model, subject.config
    if model is None:
        return section("trained", "What was trained", paragraph(_of_document(subject)))
    lineage = model.lineage
    rows = [("model", model.summary())]
    if config is not None:
        rows += list(_training(config, lineage[-1] if lineage else {}))
    elif lineage:
        rows += [("training", line) for line in described(lineage[-1:])]
    before = list(described(lineage[:-1])) if len(lineage) > 1 else []
    rows += [("before", line) for line in before]
    rows += [("note", note) for note in model.notes]
    return section("trained", "What was trained, on what", table(("", ""), rows, "facts"), _configuration(config))


def _of_document(subject: Subject) -> str:
    checkpoint = (subject.document or {}).get("checkpoint", {})
    lines = "; ".join(described(tuple(checkpoint.get("lineage", ()))))
    return f"{checkpoint.get('path')}: {checkpoint.get('summary')}; {lines}"


def _training(config: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of (name, text) about a run, from its configuration and its entry in the lineage."""
    train, optimizer, task = config["train"], config["optimizer"], config["task"]
    yield "task", f"{TASKS.get(task, task)}; weights at the start: {_initial(own)}"
    if terms := _terms(config):
        yield "terms of the loss", "; ".join(terms)
    for corpus in own.get("data", []):
        records = f", {corpus['records']:,} records" if "records" in corpus else ""
        yield "data", f"{corpus['folder']}, split {corpus['split']}{records}"
    yield "length", _length(own, train["batch_size"])
    rate = f"AdamW, rate up to {optimizer['learning_rate']:g}, weight decay {optimizer['weight_decay']:g}"
    yield "optimizer", f"{rate}, {optimizer['warmup_steps']:,} steps of warm-up"
    yield "seed", str(train["seed"])
    if "started" in own:
        yield "started", f"{own['started']}, r2d2_jax {own.get('version', 'of unknown version')}"


def _length(own: Mapping[str, Any], batch_size: int) -> str:
    done = [f"{own['steps']:,}"] if "steps" in own else []
    planned = [f"{own['planned_steps']:,}"] if "planned_steps" in own else []
    seen = [f"{own['pairs']:,} pairs"] if "pairs" in own else []
    epochs = [f"{own['epochs']:.3g} epochs"] if "epochs" in own else []
    return ", ".join([f"{' of '.join(done + planned)} steps, each of {batch_size:,} pairs", *seen, *epochs])


def _initial(own: Mapping[str, Any]) -> str:
    if own.get("task") == NOT_RECORDED:
        return NOT_RECORDED
    sources = [f"{name} from {source}" for name, source in own.get("initial", {}).items()]
    return ", ".join(sources) or "random"


def _terms(config: Mapping[str, Any]) -> list[str]:
    if config["task"] == "matching":
        return ["match or no match, of both cross encoders"]
    if config["task"] == "retrieval":
        return [TERMS["gcpr"], *([TERMS["fgr"]] if config["retrieval"]["fgr"] else [])]
    loss = config["loss"]
    return [TERMS[loss["contrastive"]], *(TERMS[name] for name in ("fgr", "mlm", "fgd") if loss[name])]


def _configuration(config: Mapping[str, Any] | None) -> str:
    """Every key of the configuration, folded away."""
    if config is None:
        return ""
    lines = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in flat(config, "."))
    return f"<details><summary>the whole configuration</summary>{preformatted(lines)}</details>"


def measured_section(subject: Subject) -> str:
    """What the last evaluation says, of every stage."""
    title = "How good it is"
    if subject.document is not None:
        return section("measured", title, paragraph(STAGES_EXPLAINED), preformatted(evaluation_table(subject.document)))
    if not subject.figures:
        return ""
    at = f"Measured with the weights of step {subject.measured_at:,}, in per cent. " if subject.measured_at else ""
    retrieval = any("/dual/" in name and name.endswith("_r1") for name in subject.figures)
    text = f"{at}{STAGES_EXPLAINED if retrieval else 'Of matching, chance is what a guess would give.'}"
    splits = dict.fromkeys(name.split("/")[0] for name in subject.figures)
    tables = [_table_of(split, subject.figures) for split in splits if split != "foil"]
    return section("measured", title, paragraph(text), *tables, _foil_table(subject.figures))


STAGES_EXPLAINED = (
    "R@k is the share of the queries that have a right answer among their first k candidates. The dual encoder ranks "
    "all candidates by the cosine of two vectors, which is cheap; the cross encoders then read the best of them word "
    "by word and patch by patch, and re-rank them. Chance is what a random order would give."
)


def _table_of(split: str, figures: Mapping[str, float]) -> str:
    parts = [(name.split("/", 2)[1:], value) for name, value in figures.items() if name.startswith(f"{split}/")]
    found = {(stage, name): value for (stage, name), value in parts}
    stages = [stage for stage in STAGES if any(stage == other for other, _ in found)]
    names = list(dict.fromkeys(name for _, name in found))
    rows = [(LABELS.get(name, name.replace("_", " ")), *(_shown(found.get((stage, name))) for stage in stages))
            for name in names]  # fmt: skip
    return f"<h3>{escaped(split)}</h3>" + table(("", *(STAGES[stage] for stage in stages)), rows, "figures")


def _foil_table(figures: Mapping[str, float]) -> str:
    found = {stage: figures.get(f"foil/{stage}") for stage in ("dual", "match", "reranked")}
    stages = [stage for stage, value in found.items() if value is not None]
    if not stages:
        return ""
    row = ("true caption chosen over its foil", *(_shown(found[stage]) for stage in stages), _shown(CHANCE))
    head = ("", *({**STAGES, "match": "match alone"}[stage] for stage in stages), "chance")
    return "<h3>swapped pairs</h3>" + table(head, [row], "figures")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
