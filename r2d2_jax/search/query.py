"""Questions: pictures for a sentence or for a picture, captions for a picture; pre-ranking, then re-ranking.

Both stages are those of the evaluation of retrieval. All candidates are ranked by cosine; the best of these are ordered
again by match probability + cosine, the published sum, and the others follow in the order of their cosines.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.transforms import evaluation_image, map_ahead
from r2d2_jax.data.text.blank import is_blank
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.inference import Ranker
from r2d2_jax.inputs import Images, listed_texts
from r2d2_jax.search.view import IndexView

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hit:
    """One answer.

    what: the picture's file, or the caption. cosine: of the embeddings. match: match probability; None of what was not
    re-ranked. rank_by_cosine: its place in pre-ranking, from 1. copies: further files with the same content.
    digest: of that content, in hexadecimal digits; None of a caption.
    """

    what: str
    cosine: float
    rank_by_cosine: int
    match: float | None = None
    copies: tuple[str, ...] = ()
    digest: str | None = None

    @property
    def score(self) -> float:
        """What re-ranking orders by: match probability + cosine."""
        return self.cosine + (self.match or 0.0)


@dataclass(frozen=True)
class Answer:
    """The best answers, the best first.

    candidates: how many were re-ranked. seconds: of "pre_ranking" and "re_ranking"; the first question's include the
    compilation of its forwards. notes: what the person who asks should know, a line each.
    """

    hits: tuple[Hit, ...]
    candidates: int
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def checked_query(model: Ranker, text: str) -> tuple[str, ...]:
    """Notes on a sentence: what of it the model does not read. A longer one than the model's texts is cut at its end.

    Raises:
        UserError: it is blank, no text, or the model came without a vocabulary.
    """
    (text,) = listed_texts(text)
    if is_blank(text):
        raise UserError(f"the query {text!r} says nothing; expected a sentence, such as 一只狗在草地上")
    tokenizer, notes = model.tokenizer, []
    ids = tokenizer.backend().encode(text).ids
    if len(ids) > tokenizer.text_length:
        notes.append(
            f"the query has {len(ids) - 2:,} tokens, of which the model reads the first {tokenizer.text_length - 2}"
        )
    if set(ids) <= set(tokenizer.special_ids):
        notes.append("the model's vocabulary has no token of the query; do not read much into the answer")
    return tuple(notes)


def pictures_for_text(model: Ranker, index: IndexView, text: str, *, top: int, candidates: int) -> Answer:
    """The pictures that a sentence describes.

    Args:
        model: the model of the index.
        index: where to look.
        text: the sentence.
        top: answers.
        candidates: how many of the best by cosine the cross encoders re-rank; 0 for pre-ranking alone.

    Raises:
        UserError: see `checked_query`; or there are candidates and no cross encoders.
    """
    notes = checked_query(model, text)
    if candidates:
        model.check_matches()
    start = time.perf_counter()
    query = model.encode_text(text).embed[0]
    hits = _pictures(index, query, max(top, candidates))
    middle = time.perf_counter()
    hits = _reranked_pictures(model, text, hits, candidates)
    return _answer(hits, top, candidates, start, middle, notes)


def pictures_for_image(model: Ranker, index: IndexView, image: Images, *, top: int) -> Answer:
    """The pictures that are most like a picture, by cosine: the cross encoders compare pictures with texts only.

    Args:
        model: the model of the index.
        index: where to look.
        image: one image, as for `Ranker.encode_image`.
        top: answers.

    Raises:
        UserError: the image is absent or damaged.
    """
    start = time.perf_counter()
    hits = _pictures(index, model.encode_image(image).embed[0], top)
    return _answer(hits, top, 0, start, time.perf_counter(), ())


def captions_for_image(model: Ranker, image: Images, captions: Sequence[str], *, top: int, candidates: int) -> Answer:
    """The captions of a list that describe a picture; `top` and `candidates` as for `pictures_for_text`.

    Raises:
        UserError: there is no caption, the image is absent or damaged, the model came without a vocabulary, or there
            are candidates and no cross encoders.
    """
    texts = listed_texts(captions)
    if not texts:
        raise UserError("there is no caption to rank; expected one or several")
    if candidates:
        model.check_matches()
    start = time.perf_counter()
    pixels = model.pixels(image)
    cosine = model.encode_text(texts).embed @ model.encode_image(pixels).embed[0]
    order = np.argsort(-cosine, kind="stable")[: max(top, candidates)]
    hits = [Hit(texts[place], float(cosine[place]), rank) for rank, place in enumerate(order, 1)]
    middle = time.perf_counter()
    chosen = hits[:candidates]
    if chosen:
        hits = _reordered(chosen, model.match(pixels, [hit.what for hit in chosen])) + hits[candidates:]
    return _answer(hits, top, candidates, start, middle, ())


def _pictures(index: IndexView, query: np.ndarray, count: int) -> list[Hit]:
    found = index.nearest(query, count)
    return [
        Hit(str(each.paths[0]), each.cosine, rank, copies=tuple(map(str, each.paths[1:])), digest=each.digest.hex())
        for rank, each in enumerate(found, 1)
    ]


def _reranked_pictures(model: Ranker, text: str, hits: list[Hit], candidates: int) -> list[Hit]:
    """The first candidates in the order of their scores, then the others; files that are gone are left out."""
    side = model.config.image.image_size
    read = list(map_ahead(partial(_pixels, side=side), [hit.what for hit in hits[:candidates]]))
    readable = [(hit, pixels) for hit, pixels in zip(hits, read, strict=False) if pixels is not None]
    if not readable:
        return hits[candidates:]
    chosen, images = zip(*readable, strict=True)
    return _reordered(chosen, model.match(list(images), [text])) + hits[candidates:]


def _pixels(path: str, side: int) -> np.ndarray | None:
    try:
        return evaluation_image(Path(path).read_bytes(), side)
    except (OSError, UnusableRecord) as error:  # removed or overwritten since it was indexed
        logger.warning("%r is left out: %s; bring the index up to date", path, first_line(error))
        return None


def _reordered(hits: Sequence[Hit], match: np.ndarray) -> list[Hit]:
    matched = [replace(hit, match=float(value)) for hit, value in zip(hits, match, strict=True)]
    return sorted(matched, key=lambda hit: -hit.score)  # stable: of equal scores the higher cosine is first


def _answer(
    hits: Sequence[Hit], top: int, candidates: int, start: float, middle: float, notes: tuple[str, ...]
) -> Answer:
    seconds = {"pre_ranking": middle - start, "re_ranking": time.perf_counter() - middle if candidates else 0.0}
    return Answer(tuple(hits[:top]), sum(hit.match is not None for hit in hits), seconds, notes)
