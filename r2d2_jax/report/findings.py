"""Everything in a report that has to be computed with the model: answers of both stages, swapped pairs, heat maps."""

import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.entities import Entity, entities
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.evaluation.attention import AttentionMap, attention_maps, on_picture, token_places
from r2d2_jax.evaluation.foil import FoilScores, check_foil_split, foil_scores
from r2d2_jax.evaluation.ground_truth import GroundTruth
from r2d2_jax.evaluation.retrieval import encoded_gallery
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.inference import Ranker
from r2d2_jax.models.store import Model
from r2d2_jax.report.answers import Answers, answers, evenly
from r2d2_jax.report.pictures import picture_of
from r2d2_jax.report.subject import Asked
from r2d2_jax.sharding import make_mesh

logger = logging.getLogger(__name__)

MAPPED, WORDS = 4, 5  # captions with heat maps, and the most things of each that have one


@dataclass(frozen=True)
class HeatMaps:
    """The heat maps of a caption: the picture of them is a PNG file's bytes."""

    caption: str
    things: tuple[str, ...]
    png: bytes


@dataclass(frozen=True)
class Findings:
    """What was computed; what there is nothing of is empty or None.

    split, foil_split: where the answers come from. answers: by direction. foils: scores of `foil_split`'s images.
    maps: of a few captions of `split`. missing: a sentence for each thing that could not be computed.
    """

    split: EvaluationSplit | None = None
    answers: Mapping[str, Answers] = field(default_factory=dict)
    foil_split: EvaluationSplit | None = None
    foils: FoilScores | None = None
    maps: tuple[HeatMaps, ...] = ()
    missing: tuple[str, ...] = ()


def find(model: Model, asked: Asked, most: int) -> Findings:
    """Computes everything on the devices of this process alone.

    Args:
        model: with a vocabulary.
        asked: the splits, and how they are asked.
        most: queries of each direction that are re-ranked.

    Raises:
        UserError: re-ranking needs what the model lacks.
    """
    if model.vocabulary is None:
        return Findings(missing=("The model came without a vocabulary, so no answers are shown.",))
    length = model.config.text.text_length
    tokenizer = tokenizer_of(model.vocabulary, length, map_punctuation=model.maps_punctuation)
    model = model.computing_in(asked.dtype)
    missing: list[str] = []
    split = _split(asked, asked.split, asked.max_images, tokenizer, model, missing)
    foil_split = _split(asked, asked.foil_split, 0, tokenizer, model, missing)
    if split is None and foil_split is None:
        return Findings(missing=tuple(missing))
    found, foils = _scored(model, asked, split, foil_split, most)
    matches = model.module.matching
    maps = _heat_maps(model, split, asked.batch_size) if split is not None and matches else ()
    return Findings(split, found, foil_split, foils, maps, tuple(missing))


def _split(
    asked: Asked, name: str, limit: int, tokenizer: Tokenizer, model: Model, missing: list[str]
) -> EvaluationSplit | None:
    """The split of this name; None without a name, or where it cannot be read, which `missing` is told."""
    if not name:
        return None
    try:
        split = EvaluationSplit(RecordSource(asked.directory, name), tokenizer, model.config.image.image_size, limit)
        if name == asked.foil_split:
            check_foil_split(split)
    except UserError as error:
        missing.append(f"Nothing of the split {name} is shown. {first_line(error)}")
        return None
    return split


def _scored(
    model: Model, asked: Asked, split: EvaluationSplit | None, foil_split: EvaluationSplit | None, most: int
) -> tuple[Mapping[str, Answers], FoilScores | None]:
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    scorer = Scorer(model.module, mesh, math.ceil(asked.batch_size / mesh.size) * mesh.size)
    params: Params = scorer.encoder.placed(model.params)
    found: Mapping[str, Answers] = {}
    if split is not None:
        truth = GroundTruth(split.num_images, len(split.captions), split.pairs)
        if asked.settings.same_text_is_right:
            truth = truth.with_equal_texts_shared(split.captions)
        with encoded_gallery(scorer, params, split, truth, asked.settings) as gallery:
            found = answers(gallery, truth, asked.settings, mesh, most)
    if foil_split is None:
        return found, None
    encoded = scorer.encode(params, foil_split, keep_tokens=scorer.matches)
    return found, foil_scores(scorer, params, encoded, match=scorer.matches)


def _heat_maps(model: Model, split: EvaluationSplit, batch_size: int) -> tuple[HeatMaps, ...]:
    """Of a few images at even distances in the split, the things that their first caption with any names."""
    ranker = Ranker(model, batch_size=batch_size)
    asked: list[tuple[int, str, Entity]] = []
    captioned = np.unique(split.pairs[:, 0])
    for image in captioned[evenly(len(captioned), MAPPED)]:
        for row in split.pairs[split.pairs[:, 0] == image, 1]:
            if things := _things(ranker.tokenizer, split.captions[row]):
                asked += [(int(image), split.captions[row], thing) for thing in things]
                break
    if not asked:
        return ()
    images, texts, entities_of = (list(each) for each in zip(*asked, strict=True))
    maps = attention_maps(ranker, [split.picture(image) for image in images], texts, entities_of)
    drawn = []
    for image in dict.fromkeys(images):
        own = [row for row, other in enumerate(images) if other == image]
        drawn.append(_drawn(split, image, texts[own[0]], [maps[row] for row in own]))
    return tuple(drawn)


def _things(tokenizer: Tokenizer, text: str) -> list[Entity]:
    """The first things that a caption names, as far as the model reads it."""
    found = []
    for thing in entities(text):
        try:
            token_places(tokenizer, text, thing)
        except UserError:  # the text is cut before it
            continue
        found.append(thing)
    return found[:WORDS]


def _drawn(split: EvaluationSplit, image: int, caption: str, maps: list[AttentionMap]) -> HeatMaps:
    from r2d2_jax.plots.heat_maps import draw_heat_maps  # Matplotlib takes a second

    pixels = np.asarray(picture_of(split.picture(image)))
    heat = [on_picture(each.patches, *pixels.shape[:2]) for each in maps]
    things = tuple(each.entity.text for each in maps)
    with tempfile.TemporaryDirectory(prefix="r2d2_jax-") as folder:
        path = draw_heat_maps(pixels, heat, things, caption, Path(folder) / "heat_maps.png")
        return HeatMaps(caption, things, path.read_bytes())
