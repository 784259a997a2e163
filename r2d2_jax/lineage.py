"""What led to a model's weights: one plain dict for each training, the oldest first.

A run writes its lineage beside its checkpoints when it starts, its initial model's included, so that the record
outlives the parent. A model that is converted takes it along.
"""

import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import r2d2_jax
from r2d2_jax.atomic import written_whole
from r2d2_jax.errors import UserError, first_line

# Keys of a training's entry: task, initial (name -> source of the initial weights), data (a list of folder, split,
# records), batch_size, seed, planned_steps, planned_epochs, version, started; of a checkpoint of it also steps, pairs,
# epochs, and weights where they are not the student's. Of what is not known: task NOT_RECORDED, and source.
Lineage = tuple[dict[str, Any], ...]

LINEAGE = "lineage.json"
NOT_RECORDED = "not recorded"


def unrecorded(source: str) -> dict[str, Any]:
    """The entry of weights that came without a lineage, such as those of a published file."""
    return {"task": NOT_RECORDED, "source": source}


def training(config: dict[str, Any]) -> dict[str, Any]:
    """The entry of a training, as far as its configuration tells it.

    Args:
        config: as `Config.to_dict` gives it.
    """
    data, train = config["data"], config["train"]
    return {
        "task": config["task"],
        "initial": {name: source for name, source in config["initial"].items() if source and isinstance(source, str)},
        "data": [{"folder": name, "split": data["train_split"]} for name in data["corpora"] or [data["directory"]]],
        "batch_size": train["batch_size"],
        "planned_epochs": train["epochs"],
        "seed": train["seed"],
    }


def started_training(config: dict[str, Any], records: Sequence[int], steps: int) -> dict[str, Any]:
    """The entry of a training that starts now.

    Args:
        config: as `Config.to_dict` gives it.
        records: how many training records each corpus has.
        steps: of the whole run.
    """
    entry = training(config)
    entry["data"] = [corpus | {"records": count} for corpus, count in zip(entry["data"], records, strict=True)]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return entry | {"planned_steps": steps, "version": r2d2_jax.__version__, "started": today}


def of_checkpoint(workdir: Path, config: dict[str, Any], step: int) -> Lineage:
    """The lineage of a run's checkpoint.

    Args:
        workdir: the run's folder.
        config: the configuration in the checkpoint; it has to do where the run started before lineages were written.
        step: completed steps.
    """
    kept = read_lineage(workdir / LINEAGE)
    if not kept:
        parent = config["initial"]["model"]
        kept = (*([unrecorded(parent)] if parent else []), training(config))
    *before, own = kept
    pairs = step * own["batch_size"]
    own = own | {"steps": step, "pairs": pairs}
    if records := sum(corpus.get("records", 0) for corpus in own["data"]):
        own["epochs"] = pairs / records
    return (*before, own)


def write_lineage(lineage: Lineage, path: Path) -> None:
    """Writes a lineage as JSON, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(lineage, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lineage(path: Path) -> Lineage:
    """Reads what `write_lineage` wrote; empty where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; copy it back, or remove it") from error
    return checked_lineage(entries, str(path))


def checked_lineage(entries: Any, source: str) -> Lineage:
    """A lineage as JSON gives it.

    Raises:
        UserError: it is no list of objects that each name a task.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "task" in entry for entry in entries):
        raise UserError(f"the lineage in {source} is no list of trainings; copy the file back, or remove the lineage")
    return tuple(entries)


def described(lineage: Lineage) -> Iterator[str]:
    """One line for each training, for people."""
    for entry in lineage:
        if entry["task"] == NOT_RECORDED:
            yield f"training not recorded: {entry.get('source', 'unknown source')}"
        else:
            yield _described(entry)
    if not lineage:
        yield f"training {NOT_RECORDED}"


def _described(entry: dict[str, Any]) -> str:
    sources = [f"{name} from {source}" for name, source in entry.get("initial", {}).items()]
    parts = [f"{entry['task']} of {', '.join(sources)}" if sources else f"{entry['task']} from random weights"]
    parts.append(f"on {', '.join(map(_corpus, entry.get('data', [])))}")
    if "steps" in entry:
        planned = f" of {entry['planned_steps']:,}" if "planned_steps" in entry else ""
        parts.append(f"{entry['steps']:,}{planned} steps, {entry['pairs']:,} pairs")
    forms = {"epochs": "{:.3g} epochs", "seed": "seed {}", "weights": "{} weights", "version": "r2d2_jax {}"}
    parts += [form.format(entry[key]) for key, form in forms.items() if key in entry]
    return "; ".join([*parts, *filter(None, [entry.get("started")])])


def _corpus(corpus: dict[str, Any]) -> str:
    return corpus["folder"] + (f" ({corpus['records']:,} records)" if "records" in corpus else "")
