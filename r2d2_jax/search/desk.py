"""The model behind the page: one question after the other, each in the one thread that computes.

While it computes, the event loop goes on to take requests and to send pictures. A question whose page has meanwhile
asked another is dropped when its turn comes, so that a slider may be moved as fast as anyone likes.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request

from r2d2_jax.data.text.entities import Entity, entities, entity_in
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.attention import Reading, attention_maps
from r2d2_jax.evaluation.progress import before_each_batch
from r2d2_jax.inference import Ranker
from r2d2_jax.search.files import shown
from r2d2_jax.search.query import Answer, Hit, pictures_for_image, pictures_for_text
from r2d2_jax.search.thumbnails import Thumbnails
from r2d2_jax.search.view import IndexView

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ANSWERS = 64  # of a ranking; the page shows them in parts
# Candidates go through the model in batches of so many, and the slider stops at multiples: so all its places share
# what is compiled before the first question.
STEP, MOST_CANDIDATES = 16, 128
READINGS = {"attention": Reading.RELATIVE, "occlusion": Reading.OCCLUSION}
_DECODERS = 2  # pictures at once; the largest that is decoded takes 1 GiB
WARMING = "一只狗在草地上"


class Gone(Exception):
    """Nobody waits for the answer any more, or the server ends."""


@dataclass(frozen=True)
class Desk:
    """What the page's requests are answered with.

    model: of the index, with batches of `STEP`. index: where to look. candidates: re-ranked unless the page says
    otherwise; 0 of a model without cross encoders.
    """

    model: Ranker
    index: IndexView
    candidates: int

    @functools.cached_property
    def thumbnails(self) -> Thumbnails:
        """Of the index."""
        return Thumbnails(self.index)

    @functools.cached_property
    def places(self) -> list[int]:
        """Numbers of candidates at which the slider stops."""
        steps = range(STEP, MOST_CANDIDATES + 1, STEP) if self.model.matches else ()
        return sorted({0, self.candidates, *steps})

    def described(self) -> dict[str, Any]:
        """What the page must know before it asks, as plain JSON values."""
        state = self.index.state()
        return {
            "photos": shown(self.index.photos.resolve().name),
            "pictures": state.pictures,
            "complete": state.complete,
            "matches": self.model.matches,
            "occlusion": self.model.matches and self.model.model.module.masked_lm,
            "candidates": self.candidates,
            "places": self.places,
        }

    def for_text(self, query: str, candidates: int) -> dict[str, Any]:
        """Both stages, or with 0 candidates the first; plain JSON values.

        Raises:
            UserError: see `pictures_for_text`; or the slider has no such place.
        """
        if candidates not in self.places:
            raise UserError(f"candidates is {candidates}; expected one of {', '.join(map(str, self.places))}")
        answer = pictures_for_text(self.model, self.index, query, top=ANSWERS, candidates=candidates)
        read = query[: int(self.model.tokenizer.offsets(query)[:, 1].max())]  # the others have no heat map
        return self._answered(answer) | {"entities": [thing.text for thing in entities(read)]}

    def for_image(self, pixels: np.ndarray) -> dict[str, Any]:
        """The pictures that are like one, uint8 [side side 3]; plain JSON values."""
        return self._answered(pictures_for_image(self.model, self.index, pixels, top=ANSWERS))

    def heat(self, pixels: np.ndarray, query: str, words: str, reading: str) -> dict[str, Any]:
        """Where the model looks in a picture for words of the query.

        Args:
            pixels: uint8 [side side 3].
            query: the sentence.
            words: a part of it; an entity, or any other.
            reading: a name of `READINGS`.

        Returns:
            "rows": values of the patches, row by row, of which the largest is 1; all 0 where the reading leaves
            nothing.

        Raises:
            UserError: there is no such reading, the words are not in the query, or the model reads none of them.
        """
        if reading not in READINGS:
            raise UserError(f"the reading is {reading!r}; expected one of {', '.join(READINGS)}")
        named: dict[str, Entity] = {thing.text: thing for thing in entities(query)}
        entity = named.get(words) or entity_in(query, words)
        (found,) = attention_maps(self.model, pixels, [query], [entity], READINGS[reading])
        rows = found.patches / max(float(found.patches.max()), 1e-12)
        return {"rows": rows.round(3).tolist()}

    def warm_up(self) -> float:
        """Compiles what questions need, so that the first one waits no longer than others; returns the seconds."""
        start = time.monotonic()
        side = self.model.config.image.image_size
        pixels = np.zeros((side, side, 3), np.uint8)
        self.for_text(WARMING, 0)
        self.for_text(WARMING, self.candidates)
        self.for_image(pixels)
        if self.model.matches:
            self.model.attention(pixels, WARMING)
        return time.monotonic() - start

    def _answered(self, answer: Answer) -> dict[str, Any]:
        state = self.index.state()
        return {
            "hits": [self._shown(hit) for hit in answer.hits],
            "candidates": answer.candidates,
            "seconds": answer.seconds,
            "notes": list(answer.notes),
            "pictures": state.pictures,
            "complete": state.complete,
        }

    def _shown(self, hit: Hit) -> dict[str, Any]:
        """Paths are told from the folder of photographs on."""
        names = [shown(str(Path(path).relative_to(self.index.photos))) for path in (hit.what, *hit.copies)]
        return {
            "id": hit.digest,
            "names": names,
            "cosine": hit.cosine,
            "match": hit.match,
            "rank_by_cosine": hit.rank_by_cosine,
        }


class Turns:
    """Computes in one thread, in the order in which requests came; pictures are decoded in others."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._computing = ThreadPoolExecutor(1, "model")
        self._decoding = ThreadPoolExecutor(_DECODERS, "pictures")
        self._stopped = False

    async def compute(self, request: Request, work: Callable[[], Result]) -> Result:
        """What `work` returns, once it is its turn.

        Raises:
            Gone: by then nobody waits for the answer.
        """
        async with self._turn:
            if await request.is_disconnected():
                raise Gone
            return await asyncio.get_running_loop().run_in_executor(self._computing, self._stoppable, work)

    async def decode(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, which decodes a picture."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, work)

    def stop(self) -> None:
        """Lets threads end at the next batch."""
        self._stopped = True
        for threads in (self._computing, self._decoding):
            threads.shutdown(wait=False, cancel_futures=True)

    def _stoppable(self, work: Callable[[], Result]) -> Result:
        with before_each_batch(self._check):
            return work()

    def _check(self) -> None:
        if self._stopped:
            raise Gone
