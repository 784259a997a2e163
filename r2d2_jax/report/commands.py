"""The commands to go on with, with the paths of this run, quoted for a shell."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r2d2_jax.buckets.path import is_address
from r2d2_jax.report.subject import Subject
from r2d2_jax.status import STATUS


@dataclass(frozen=True)
class Command:
    """A line for a shell, and why one would run it."""

    why: str
    line: str


def commands(subject: Subject, caption: str) -> Iterator[Command]:
    """What can be done next with the model.

    Args:
        subject: of the report.
        caption: any text that the model can read, "" if none is known.
    """
    model, matching = _absolute(subject.path), subject.model is not None and subject.model.module.matching
    if subject.run is not None:
        if (subject.run / STATUS).exists():
            yield Command("How the run is, seen from outside:", _line("r2d2-status", model))
        yield Command("Draw its curves again, or those of several runs together:", _line("r2d2-plot", model))
    if data := _data(subject):
        directory, split = data
        flags = {"checkpoint": model, "data": _absolute(Path(directory)), "split": split, "json": "evaluation.json"}
        yield Command("Measure the model on any split, with 95 % intervals:", _line("r2d2-evaluate", **flags))
        yield Command("Write a report like this one about such a measurement:", "r2d2-report evaluation.json")
    if matching and caption:
        flags = {"checkpoint": model, "image": "photo.jpg", "text": caption}
        why = "See where the model looks in a picture of your own, photo.jpg, for the words of a sentence about it:"
        yield Command(why, _line("r2d2-visualize", **flags))
    export = {"input": model, "output": f"{model}-transformers", "format": "transformers"}
    yield Command("Export the model for PyTorch and transformers:", _line("r2d2-convert", **export))
    if subject.config is None or subject.config["task"] != "matching":
        own = {"config": "retrieval:own", "config.initial.model": model, "config.data.directory": "data/mine"}
        plain = {} if matching else {"config.retrieval.fgr": "False", "config.evaluation.rerank_candidates": "0"}
        why = "Fine-tune it for retrieval on your own pictures, once launch/prepare_data.py has made data/mine of them:"
        yield Command(why, _line("r2d2-train", **own, **plain, workdir="runs/mine"))


def _line(program: str, *arguments: str, **flags: str) -> str:
    return " ".join([program, *map(shlex.quote, arguments), *(_flag(name, value) for name, value in flags.items())])


def _flag(name: str, value: str) -> str:
    return f"--{name}={shlex.quote(value)}"


def _absolute(path: Path) -> str:
    """As it can be named from any folder."""
    return str(path) if is_address(str(path)) else os.path.abspath(path)


def _data(subject: Subject) -> tuple[str, str] | None:
    """Folder and split of the data that the model was measured on."""
    if subject.document is not None:
        return subject.document["data"]["folder"], subject.document["data"]["split"]
    if subject.config is None or not subject.config["data"]["validation_split"]:
        return None
    data = subject.config["data"]
    return data["directory"], data["validation_split"]
