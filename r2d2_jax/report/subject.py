"""What a report is about: a run, or an evaluation that was written as JSON, and what of either is there."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d2_jax.buckets.path import SCHEME, BucketPath
from r2d2_jax.convert.conversion import STUDENT, is_run, open_model, open_run
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.evaluation.retrieval import RetrievalSettings
from r2d2_jax.models.store import Model
from r2d2_jax.paths import path_or_bucket

logger = logging.getLogger(__name__)

DOCUMENT_KEYS = {"task", "data", "checkpoint", "settings", "counts", "figures", "intervals", "published"}


@dataclass(frozen=True)
class Asked:
    """Where answers are looked for, and how.

    directory: of the prepared dataset. split: of retrieval, "" for none; foil_split likewise. max_images: the first so
    many images of the split, 0 for all. settings: of retrieval. batch_size: of a forward over all devices. dtype: of
    matrix products.
    """

    directory: str
    split: str
    foil_split: str
    max_images: int
    settings: RetrievalSettings
    batch_size: int
    dtype: str


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    name: for titles, as it was asked for. path: of the run, or of the model that was measured.
    run: the run's folder, where its log is; None for another model.
    model: None where it is not there any more. config: of the run, as `Config.to_dict` gave it.
    figures: by the names of the log, such as "validation/dual/i2t_r1", in per cent; empty if nothing was measured.
    measured_at: the step that the figures describe. document: what launch/evaluate.py wrote, of an evaluation.
    asked: None where there is no split of images and captions.
    missing: a sentence for each thing that should be there and is not.
    """

    name: str
    path: Path
    run: Path | None
    model: Model | None
    config: dict[str, Any] | None
    figures: dict[str, float]
    measured_at: int | None
    document: dict[str, Any] | None
    asked: Asked | None
    missing: tuple[str, ...] = ()


def open_subject(path: Path) -> Subject:
    """Opens a run or an evaluation.

    Args:
        path: the --workdir of a run, or a file that `launch/evaluate.py --json` wrote.

    Raises:
        UserError: it is neither, or the run has no checkpoint that can be read.
    """
    if is_run(path):
        return _of_run(path)
    if path.is_file():
        return _of_document(path)
    expected = "expected the --workdir of a run, or a file that launch/evaluate.py --json=FILE wrote"
    if not path.is_dir():
        raise UserError(f"there is no {path}; {expected}")
    raise UserError(f"{path} is no run: it holds no folder checkpoints; {expected}")


def _of_run(path: Path) -> Subject:
    model, config, figures, measured_at = open_run(path)
    data, evaluation = config["data"], config["evaluation"]
    asked = None
    if config["task"] != "matching" and (data["validation_split"] or data["foil_split"]):
        asked = Asked(
            directory=data["directory"],
            split=data["validation_split"],
            foil_split=data["foil_split"],
            max_images=data["validation_images"],
            settings=RetrievalSettings(
                rerank=evaluation["rerank_candidates"] if model.module.matching else 0,
                directions=tuple(evaluation.get("directions", ("i2t", "t2i"))),
            ),
            batch_size=evaluation["batch_size"],
            dtype=config["model"]["dtype"],
        )
    return Subject(str(path), path, path, model, config, figures, measured_at, None, asked)


def _of_document(path: Path) -> Subject:
    document = _document(path)
    checkpoint, data, settings = document["checkpoint"], document["data"], document["settings"]
    model, config, missing = None, None, []
    # Named as it was asked for, also where it cannot be read.
    folder: Path = BucketPath(checkpoint["path"]) if checkpoint["path"].startswith(SCHEME) else Path(checkpoint["path"])
    try:
        folder = path_or_bucket(checkpoint["path"])
        weights = checkpoint.get("weights", STUDENT)
        if is_run(folder):
            model, config, *_ = open_run(folder, weights=weights)
        else:
            model = open_model(folder)
        model = dataclasses.replace(model, maps_punctuation=checkpoint.get("maps_punctuation", model.maps_punctuation))
    except UserError as error:
        missing.append(f"The model that was measured cannot be read, so no answers are shown. {first_line(error)}")
    asked = None
    if document["task"] == "retrieval":
        asked = Asked(
            directory=data["folder"],
            split=data["split"],
            foil_split="",
            max_images=settings["max_images"],
            settings=RetrievalSettings(
                rerank=settings["rerank"] if model is None or model.module.matching else 0,
                directions=tuple(settings["directions"]),
                same_text_is_right=settings["same_text_is_right"],
            ),
            batch_size=settings["batch_size"],
            dtype=settings["dtype"],
        )
    stages = document["figures"].items()
    figures = {f"{data['split']}/{stage}/{name}": value for stage, found in stages for name, value in found.items()}
    run = folder if config is not None else None
    return Subject(str(path), folder, run, model, config, figures, None, document, asked, tuple(missing))


def _document(path: Path) -> dict[str, Any]:
    expected = "expected a file that launch/evaluate.py --json=FILE wrote, or the --workdir of a run"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {first_line(error)}; {expected}") from error
    absent = DOCUMENT_KEYS - set(document) if isinstance(document, dict) else DOCUMENT_KEYS
    if absent:
        raise UserError(f"{path} has no {', '.join(sorted(absent))}; {expected}")
    return document
