"""Two-stage retrieval: recall of the dual encoder alone, and after the cross encoders have re-ranked its best."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from r2d2_jax.arrays import Params
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.bootstrap import recall_intervals
from r2d2_jax.evaluation.finished import finished_blocks, params_checksum, rows_checksum
from r2d2_jax.evaluation.gallery import Gallery
from r2d2_jax.evaluation.ground_truth import DIRECTIONS, I2T, T2I, GroundTruth, texts_repeated_under_other_images
from r2d2_jax.evaluation.memory import Plan, plan_memory, retrieval_needs
from r2d2_jax.evaluation.nearest import nearest
from r2d2_jax.evaluation.ranks import CUTOFFS, recalls_of, reranked_ranks, with_means
from r2d2_jax.evaluation.scorer import Scorer


@dataclass(frozen=True)
class RetrievalSettings:
    """How a split is asked.

    rerank: how many candidates of each query the cross encoders re-rank, clipped to the gallery; 0 for none. Each
        direction re-ranks its own.
    directions: "i2t" and "t2i", or one of them; MUGE asks for "t2i" alone.
    same_text_is_right: texts of equal characters have each other's images.
    memory_limit: bytes that host memory of a process, and memory of a device, may reach; None for no limit.
    work: a folder in which finished blocks are kept, so that the same evaluation goes on there after a kill; None keeps
        nothing. All processes must see it.
    intervals: also give 95 % bootstrap intervals over images.
    """

    rerank: int = 0
    directions: tuple[str, ...] = DIRECTIONS
    same_text_is_right: bool = False
    memory_limit: int | None = None
    work: Path | None = None
    intervals: bool = False


@dataclass(frozen=True)
class RetrievalCounts:
    """What a split is made of.

    image_queries, text_queries: images and texts with a right answer; the others are candidates only.
    texts_with_several_images: any of them is a hit. repeated_texts: texts that have the very characters of a text of
    another image; see `GroundTruth.with_equal_texts_shared`.
    """

    images: int
    texts: int
    image_queries: int
    text_queries: int
    texts_with_several_images: int
    repeated_texts: int


@dataclass(frozen=True)
class RetrievalReport:
    """Recall in per cent by "i2t_r1" ... "t2i_r10", "i2t_mean", "t2i_mean", "mean", and "r10" if both are asked.

    dual: by cosine. cross: the best by cosine re-ranked by match probability alone. reranked: by the published sum of
    match probability and cosine. Both are None if not asked for. chance: expected of a random order.
    intervals: by stage and name, low and high end of the 95 % interval; empty if not asked for.
    counts: what the split is made of. forwards: how many images, texts and pairs this process passed through the model.
    """

    dual: dict[str, float]
    reranked: dict[str, float] | None
    chance: dict[str, float]
    cross: dict[str, float] | None = None
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    counts: RetrievalCounts | None = None
    forwards: dict[str, int] = field(default_factory=dict)


class Scored(Protocol):
    """What ranking reads of a `Gallery`."""

    image_embed: np.ndarray
    text_embed: np.ndarray

    def match(self, pairs: np.ndarray) -> np.ndarray:
        """Match probability [p] of pairs [p 2] of (image, text)."""


def evaluate_retrieval(
    scorer: Scorer, params: Params, split: EvaluationSplit, settings: RetrievalSettings
) -> RetrievalReport:
    """Retrieval within one split.

    Args:
        scorer: the compiled forwards.
        params: the model's parameters, placed on the mesh.
        split: the images and texts, and which belong together.
        settings: how they are asked.

    Raises:
        UserError: nothing has a partner, the model has no cross encoders to re-rank with, the memory limit is too
            small, or the work folder is in use, of another evaluation, or cannot be written to.
    """
    truth = GroundTruth(split.num_images, len(split.captions), split.pairs)
    repeated = texts_repeated_under_other_images(truth, split.captions)
    if settings.same_text_is_right:
        truth = truth.with_equal_texts_shared(split.captions)
    with encoded_gallery(scorer, params, split, truth, settings) as gallery:
        ranks = ranks_of(gallery, truth, settings, scorer.encoder.mesh)
    return report_of(ranks, truth, settings, repeated, gallery.forwards)


@contextlib.contextmanager
def encoded_gallery(
    scorer: Scorer, params: Params, split: EvaluationSplit, truth: GroundTruth, settings: RetrievalSettings
) -> Iterator[Gallery]:
    """The images and texts of a split, encoded, within which pairs of them can be matched.

    Args:
        scorer, params, split, settings: as for `evaluate_retrieval`.
        truth: the right answers.

    Raises:
        UserError: as `evaluate_retrieval`.
    """
    scorer.announce()
    plan = _plan(scorer, params, split, truth, settings)
    identity = lambda: _identity(scorer, params, split, plan, settings)  # noqa: E731
    with finished_blocks(settings.work, identity) as finished:
        yield Gallery(scorer.encoder, params, split, plan, finished, matched=settings.rerank > 0)


def ranks_of(
    gallery: Scored, truth: GroundTruth, settings: RetrievalSettings, mesh: Mesh
) -> dict[str, dict[str, np.ndarray]]:
    """The rank from 0 of each query's best right answer, int [q], by stage ("dual", "cross", "reranked") and direction.

    Args:
        gallery: embeddings and match probabilities.
        truth: the right answers.
        settings: see `RetrievalSettings`; its memory limit and work are the gallery's.
        mesh: the devices.
    """
    embed = gallery.image_embed, gallery.text_embed
    found = {each: nearest(each, truth, *embed, settings.rerank, mesh) for each in settings.directions}
    ranks = {"dual": {direction: near.ranks for direction, near in found.items()}}
    if not settings.rerank:
        return ranks
    # Asked for together: a pair that both directions want is scored once.
    pairs = [candidate_pairs(direction, near.queries, near.candidates) for direction, near in found.items()]
    probability = np.split(gallery.match(np.concatenate(pairs)), np.cumsum([len(each) for each in pairs])[:-1])
    for stage in ("cross", "reranked"):
        ranks[stage] = {}
        for (direction, near), match in zip(found.items(), probability, strict=True):
            scores = match.reshape(near.candidates.shape)
            scores = scores + near.cosine if stage == "reranked" else scores
            ranks[stage][direction] = reranked_ranks(scores, near.answers, near.ranks)
    return ranks


def report_of(
    ranks: Mapping[str, Mapping[str, np.ndarray]],
    truth: GroundTruth,
    settings: RetrievalSettings,
    repeated_texts: int = 0,
    forwards: dict[str, int] | None = None,
) -> RetrievalReport:
    """Recalls, chance, counts and intervals by the ranks of `ranks_of`."""
    stages = {stage: recalls_of(by_direction) for stage, by_direction in ranks.items()}
    image = {I2T: truth.queries(I2T), T2I: truth.first_images()}
    image = {direction: image[direction] for direction in settings.directions}
    return RetrievalReport(
        dual=stages["dual"],
        reranked=stages.get("reranked"),
        chance=chance_recalls(truth, settings.directions),
        cross=stages.get("cross"),
        intervals={stage: recall_intervals(ranks[stage], image) for stage in ranks} if settings.intervals else {},
        counts=RetrievalCounts(
            truth.num_images,
            truth.num_texts,
            len(truth.queries(I2T)),
            len(truth.queries(T2I)),
            truth.texts_with_several_images,
            repeated_texts,
        ),
        forwards=forwards or {},
    )


def chance_recalls(truth: GroundTruth, directions: Sequence[str] = DIRECTIONS) -> dict[str, float]:
    """The expected recalls, in per cent, of a random order of the candidates."""
    chances = {f"{each}_r{k}": truth.hit_chances(each, k) for each in directions for k in CUTOFFS}
    return with_means({name: 100 * float(np.mean(chance)) for name, chance in chances.items()})


def candidate_pairs(direction: str, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """int32 [q * r, 2], (image, text) of the candidates int [q r] of queries int [q]."""
    columns = [np.repeat(queries.astype(np.int32), candidates.shape[1]), candidates.ravel()]
    return np.stack(columns if direction == I2T else columns[::-1], axis=1)


def _plan(
    scorer: Scorer, params: Params, split: EvaluationSplit, truth: GroundTruth, settings: RetrievalSettings
) -> Plan:
    if settings.rerank and not scorer.matches:
        raise UserError(
            f"{settings.rerank} candidates are to be re-ranked, but the model has no cross encoders (PRD2); "
            "set that to 0"
        )
    pairs = sum(len(truth.queries(each)) * min(settings.rerank, truth.candidates(each)) for each in settings.directions)
    limit = settings.memory_limit
    needs = retrieval_needs(scorer.encoder, scorer.config, params, split, pairs, measured=limit is not None)
    return plan_memory(needs, limit)


def _identity(
    scorer: Scorer,
    params: Params,
    split: EvaluationSplit,
    plan: Plan,
    settings: RetrievalSettings,
) -> dict[str, Any]:
    """What finished blocks depend on: the weights, the split and what is asked of it, and where blocks end."""
    encoder = scorer.encoder
    images, texts = (split.image_ids, split.picture_checksums), (split.captions, split.input_ids, split.attention_mask)
    return {
        "weights": params_checksum(params),
        "split (images, texts, right pairs)": rows_checksum(*images, *texts, split.pairs),
        "re-ranked candidates": settings.rerank,
        "directions": ", ".join(settings.directions),
        "same text is right": settings.same_text_is_right,
        "batch size": encoder.batch_size,
        "dtype": scorer.config.dtype,
        "images and texts of a block (memory limit)": f"{plan.images}, {plan.texts}",
    }
