"""Measures any checkpoint on any prepared dataset; docs/evaluation.md has the protocol."""

import dataclasses
import datetime
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

import r2d2_jax
from r2d2_jax.arrays import Params
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.convert.conversion import STUDENT, open_model
from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.classified_images import PREPARED_BY as CLASSES_PREPARED_BY
from r2d2_jax.data.classified_images import ClassifiedImages, check_class_names
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.data.labelled_pairs import MATCH_NAMES, LabelledPairs, check_labelled
from r2d2_jax.data.labelled_pairs import PREPARED_BY as PAIRS_PREPARED_BY
from r2d2_jax.data.records import RecordSource, dataset_folder, dataset_info
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.classification import TEMPLATES, evaluate_classification, read_templates
from r2d2_jax.evaluation.matching import MatchingReport, evaluate_matching
from r2d2_jax.evaluation.published import published_retrieval
from r2d2_jax.evaluation.retrieval import RetrievalSettings, evaluate_retrieval
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.models.store import Model
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.sharding import make_mesh

logger = logging.getLogger(__name__)

RETRIEVAL, MATCHING, CLASSIFICATION = TASKS = ("retrieval", "matching", "classification")
BOTH_WAYS = ("i2t", "t2i")
RERANK = 128  # candidates, as in the published evaluation
VALIDATION = "validation"
# Sets that ask in one direction only (their own protocol).
DIRECTIONS: dict[str, tuple[str, ...]] = {"muge": ("t2i",)}


@dataclass(frozen=True)
class Request:
    """What is measured, on what, and how. None stands for what the task, the data or the model suggests.

    checkpoint: as for `open_model`, and so are weights, vocabulary ("" for the model's own), map_punctuation and heads.
    data, split: a prepared folder, and one of its splits. task: one of TASKS; "" for what the data is made for.
    batch_size: rows of a forward over all devices, rounded up to a multiple of their number.
    max_images: only the first so many images, or pairs of matching; 0 for all.
    dtype: of matrix products, one of DTYPES.

    Of retrieval alone:
    rerank, directions, same_text_is_right, memory_limit, work: as in `RetrievalSettings`; by default the RERANK best
        are re-ranked, if the model can, and a set is asked both ways unless DIRECTIONS says otherwise.

    Of matching alone:
    threshold_split: the split whose best threshold is used; by default VALIDATION, if there is one.

    Of classification alone:
    templates: as for `read_templates`; by default TEMPLATES.
    """

    checkpoint: str
    data: str
    split: str = "test"
    task: str = ""
    weights: str = STUDENT
    vocabulary: str = ""
    map_punctuation: bool | None = None
    image_heads: int | None = None
    text_heads: int | None = None
    batch_size: int = 64
    max_images: int = 0
    dtype: str = "float32"
    rerank: int | None = None
    directions: tuple[str, ...] | None = None
    same_text_is_right: bool | None = None
    memory_limit: int | None = None
    work: Path | None = None
    threshold_split: str | None = None
    templates: str | None = None


# Fields of a request that one task alone reads.
OWN = {
    RETRIEVAL: ("rerank", "directions", "same_text_is_right", "memory_limit", "work"),
    MATCHING: ("threshold_split",),
    CLASSIFICATION: ("templates",),
}


@dataclass(frozen=True)
class _Measured:
    """settings: as they were used. counts: of the split. figures: by stage and name, in per cent. intervals: 95 %.

    sections: what one task alone reports. arrays: see `Measurement`.
    """

    settings: dict[str, Any]
    counts: dict[str, Any]
    figures: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    sections: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """document: everything there is to know, as plain JSON values.

    arrays: what is drawn beside it. Of matching, "probability" float32 [p] and "match" bool [p] of the pairs; of
        classification, "confusion" int64 [c c], how many images of a class (row) were taken for another (column).
    """

    document: dict[str, Any]
    arrays: dict[str, np.ndarray]


def measure(request: Request, *, default_work: Path | None = None) -> Measurement:
    """Measures a split.

    Args:
        request: what is measured.
        default_work: the folder of finished blocks of a task that keeps such, where the request names none.

    Raises:
        UserError: checkpoint, data or settings are bad input, or do not fit each other.
    """
    start = time.perf_counter()
    _check_ranges(request)
    source = RecordSource(request.data, request.split)
    task = task_of(source, request.task)
    refuse_foreign(request, task)
    templates = read_templates(request.templates) if request.templates is not None else TEMPLATES
    thresholds = _threshold_source(source, request) if task == MATCHING else None
    measurer = _Measurer(request, source, _opened(request))
    if task == RETRIEVAL:
        measured = measurer.retrieval(request.work or default_work)
    elif task == MATCHING:
        measured = measurer.matching(thresholds)
    else:
        measured = measurer.classification(templates)
    published = published_retrieval(source.dataset) if task == RETRIEVAL else []
    document = {
        "task": task,
        "data": {"folder": request.data, "dataset": source.dataset, "split": request.split, "records": len(source)},
        "checkpoint": _described(request, measurer.model),
        "settings": measured.settings | measurer.common_settings(),
        "counts": measured.counts,
        "figures": measured.figures,
        "intervals": measured.intervals,
        **measured.sections,
        "published": [dataclasses.asdict(row) for row in published],
        "version": r2d2_jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return Measurement(document, measured.arrays)


def task_of(source: RecordSource, asked: str) -> str:
    """The task to measure.

    Args:
        source: the split.
        asked: one of TASKS; "" takes what the data is made for.

    Raises:
        UserError: there is no such task, or the data cannot serve it.
    """
    has_texts = _has_texts(source)
    pairs = source.labelled and has_texts and source.class_names in ((), MATCH_NAMES)
    if not asked:
        return MATCHING if pairs else CLASSIFICATION if source.class_names else RETRIEVAL
    if asked not in TASKS:
        raise UserError(f"task is {asked!r}; expected one of {', '.join(TASKS)}")
    if asked == CLASSIFICATION:
        check_class_names(source)
        if pairs:
            raise UserError(
                f"the labels in {source.folder} say whether image and text match, and classification needs "
                f"{CLASSES_PREPARED_BY}; measure {MATCHING}"
            )
    elif asked == MATCHING:
        check_labelled(source)
        if not pairs:
            raise UserError(
                f"the dataset in {source.folder} has images of {len(source.class_names)} classes, and matching needs "
                f"{PAIRS_PREPARED_BY}; measure {CLASSIFICATION}"
            )
    elif pairs:
        raise UserError(
            f"the dataset in {source.folder} has pairs that do not match, and to retrieval every pair is a right "
            f"answer; measure {MATCHING}, or prepare the matching pairs alone"
        )
    elif not has_texts and source.class_names:
        raise UserError(
            f"the images in {source.folder} have classes and no texts, so there is nothing to retrieve; measure "
            f"{CLASSIFICATION}: these are {CLASSES_PREPARED_BY}"
        )
    return asked


def refuse_foreign(request: Request, task: str) -> None:
    """Raises UserError if something is set that the task does not read."""
    for other, names in OWN.items():
        given = [name for name in names if getattr(request, name) not in (None, "")]
        if other != task and given:
            raise UserError(f"--{given[0]} is given, which only {other} reads, and the task is {task}; leave it out")


def _has_texts(source: RecordSource) -> bool:
    """Whether the first record that can be read has a text: the records of a dataset are all of a kind."""
    for index in range(len(source)):
        try:
            return bool(source[index].captions)
        except UnusableRecord:
            continue
    return False


def _threshold_source(source: RecordSource, request: Request) -> RecordSource | None:
    """The split that the threshold comes from; None for the measured split itself."""
    name = request.threshold_split
    if name is None:
        there_is = VALIDATION in dataset_info(dataset_folder(request.data)).splits
        name = VALIDATION if there_is else source.split
    return None if name == source.split else RecordSource(request.data, name)


def _check_ranges(request: Request) -> None:
    for name, lowest in (("batch_size", 1), ("max_images", 0), ("rerank", 0)):
        value = getattr(request, name)
        if value is not None and value < lowest:
            raise UserError(f"--{name} is {value}; expected {lowest} or more")
    if request.directions is not None and (not request.directions or set(request.directions) - set(BOTH_WAYS)):
        raise UserError(f"--directions={','.join(request.directions)}; expected {','.join(BOTH_WAYS)} or one of them")


def _opened(request: Request) -> Model:
    logger.info("opening the checkpoint %s", request.checkpoint)
    model = open_model(
        path_or_bucket(request.checkpoint),
        weights=request.weights,
        image_heads=request.image_heads,
        text_heads=request.text_heads,
        vocabulary=path_or_bucket(request.vocabulary) if request.vocabulary else None,
        map_punctuation=request.map_punctuation,
    ).computing_in(request.dtype)
    if model.vocabulary is None:
        raise UserError(
            f"the checkpoint {request.checkpoint} came without a vocabulary; name its vocab.txt with --vocabulary"
        )
    for line in (model.summary(), *model.notes):
        logger.info("%s", line)
    return model


def _described(request: Request, model: Model) -> dict[str, Any]:
    return {
        "path": request.checkpoint,
        "weights": request.weights,
        "summary": model.summary(),
        "maps_punctuation": model.maps_punctuation,
        "vocabulary": model.vocabulary.name if model.vocabulary else "",
        "notes": list(model.notes),
        "lineage": list(model.lineage),
    }


class _Measurer:
    """One model on all devices of the process, and a split.

    Attributes:
        model: with its parameters on the devices alone: a copy in host memory would count against the memory limit.
    """

    def __init__(self, request: Request, source: RecordSource, model: Model) -> None:
        self._request, self._source, self.model = request, source, model
        self._size, vocabulary = model.config.image.image_size, model.vocabulary
        assert vocabulary is not None
        length = model.config.text.text_length
        self._tokenizer: Tokenizer = tokenizer_of(vocabulary, length, map_punctuation=model.maps_punctuation)
        self._mesh = make_mesh(MeshConfig(), jax.local_devices())
        batch_size = -(-request.batch_size // self._mesh.size) * self._mesh.size
        self._scorer = Scorer(model.module, self._mesh, batch_size)
        self._params: Params = self._scorer.encoder.moved(model.params)

    def common_settings(self) -> dict[str, Any]:
        """What every task reads."""
        devices = self._mesh.devices.ravel()
        return {
            "batch_size": self._scorer.encoder.batch_size,
            "max_images": self._request.max_images,
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "dtype": self._request.dtype,
            "image_size": self._size,
            "text_length": self._tokenizer.text_length,
        }

    def retrieval(self, work: Path | None) -> _Measured:
        request, matches = self._request, self.model.module.matching
        asked: tuple[str, ...] = request.directions or DIRECTIONS.get(self._source.dataset, BOTH_WAYS)
        if request.rerank and not matches:
            raise UserError(
                f"{request.checkpoint} has no cross encoders (PRD2), which --rerank={request.rerank} needs; set it to 0"
            )
        settings = RetrievalSettings(
            rerank=(RERANK if matches else 0) if request.rerank is None else request.rerank,
            directions=tuple(each for each in BOTH_WAYS if each in asked),
            same_text_is_right=bool(request.same_text_is_right),
            memory_limit=request.memory_limit,
            work=work,
            intervals=True,
        )
        split = EvaluationSplit(self._source, self._tokenizer, self._size, request.max_images)
        report = evaluate_retrieval(self._scorer, self._params, split, settings)
        assert report.counts is not None
        stages = {"dual": report.dual, "cross": report.cross, "reranked": report.reranked, "chance": report.chance}
        used = dataclasses.asdict(settings) | {"directions": list(settings.directions), "work": str(request.work or "")}
        del used["intervals"]  # which are always there
        return _Measured(
            settings=used,
            counts=dataclasses.asdict(report.counts) | {"unusable": len(split.problems)},
            figures={stage: figures for stage, figures in stages.items() if figures is not None},
            intervals=report.intervals,
            sections={"forwards": report.forwards},
        )

    def matching(self, thresholds: RecordSource | None) -> _Measured:
        if not self.model.module.matching:
            raise UserError(
                f"{self._request.checkpoint} has no cross encoders (PRD2), which say whether image and text match; "
                f"choose a checkpoint of R2D2, or measure {RETRIEVAL}"
            )
        chosen: MatchingReport | None = None
        if thresholds is not None:
            chosen = evaluate_matching(self._scorer, self._params, self._pairs(thresholds))
        match = chosen.match.cut.threshold if chosen and chosen.match else None
        pairs, dual = self._pairs(self._source), chosen.dual.cut.threshold if chosen else None
        report = evaluate_matching(self._scorer, self._params, pairs, match, dual, intervals=True)
        stages = {"dual": report.dual, "match": report.match}
        figures = {stage: found.metrics() for stage, found in stages.items() if found is not None}
        return _Measured(
            settings={"threshold_split": thresholds.split if thresholds else self._source.split},
            counts={
                "pairs": report.pairs,
                "images": report.images,
                "matches": report.matches,
                "unusable": len(pairs.problems),
            },
            figures=figures | {"chance": report.chance},
            intervals={stage: found.intervals for stage, found in stages.items() if found is not None},
            sections={"threshold_is_best_of_this_split": report.chosen_here},
            arrays={} if report.probability is None else {"probability": report.probability, "match": pairs.match},
        )

    def _pairs(self, source: RecordSource) -> LabelledPairs:
        return LabelledPairs(source, self._tokenizer, self._size, self._request.max_images)

    def classification(self, templates: tuple[str, ...]) -> _Measured:
        images = ClassifiedImages(self._source, self._size, self._request.max_images)
        report = evaluate_classification(self._scorer, self._params, images, self._tokenizer, templates)
        return _Measured(
            settings={"templates": list(templates)},
            counts={"images": report.images, "classes": len(report.classes), "unusable": len(images.problems)},
            figures={"dual": report.accuracy, "chance": report.chance},
            intervals={"dual": report.intervals},
            sections={
                "classes": [_class(each) for each in report.classes],
                "worst_classes": [_class(each) for each in report.worst()],
            },
            arrays={"confusion": report.confusion},
        )


def _class(figures: Any) -> dict[str, Any]:
    values = dataclasses.asdict(figures)
    return values | {"confused": [{"class": name, "images": count} for name, count in values["confused"]]}
