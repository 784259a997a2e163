"""An index as a reader sees it: the last state that was committed, also while another process goes on with it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model
from r2d2_jax.search.catalog import Catalog
from r2d2_jax.search.files import read_content, shown
from r2d2_jax.search.index import check_model, embeddings_file, rounded_file
from r2d2_jax.search.nearest import Found, approximate_best, exact_best

Answer = TypeVar("Answer")
_ATTEMPTS = 5  # to read a state whose files a writer replaces meanwhile


@dataclass(frozen=True)
class State:
    """One state of an index.

    version: of the catalogue. generation: of the rows' numbers. complete: whether the last update came to its end.
    embeddings: float32 [n e], mapped. live: bool [n], of which pictures are still there. rounded: int8 [n e], mapped;
    None where the exact scan is used.
    """

    version: int
    generation: int
    complete: bool
    embeddings: np.ndarray
    live: np.ndarray
    rounded: np.ndarray | None

    @property
    def pictures(self) -> int:
        """Number of different pictures."""
        return int(np.count_nonzero(self.live))

    def best(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 [k] and cosines float32 [k] of the pictures nearest to a unit-norm query float32 [e]."""
        if self.rounded is None:
            found: Found = exact_best(self.embeddings, self.live, query[None], count)
        else:
            found = approximate_best(self.rounded, self.embeddings, self.live, query[None], count)
        return found.rows[0], found.cosine[0]


@dataclass(frozen=True)
class Neighbour:
    """A picture that a query found.

    paths: of its files, in order, from the folder of photographs on. cosine: with the query. digest: of its content.
    """

    paths: tuple[Path, ...]
    cosine: float
    digest: bytes


class IndexView:
    """The newest committed state of an index; several threads may ask it.

    Attributes:
        folder: of the index. photos: the folder of photographs.
    """

    def __init__(self, folder: Path, photos: Path, model: Model) -> None:
        """Opens the index.

        Raises:
            UserError: there is no index, it is of another model or of another folder of photographs, it is damaged, or
                no picture is in it yet.
        """
        self.folder, self.photos = folder, photos
        with Catalog(folder) as catalog:
            check_model(catalog, folder, model)
            made_of, place = catalog.fact("photos"), shown(os.path.realpath(photos))
        if made_of != place:
            raise UserError(
                f"the index in {folder} is of {made_of}, not of {place}; name that folder as --photos, or bring the "
                "index up to date, without --no_update"
            )
        self._state = newest_state(self.folder)
        if not self._state.pictures:
            raise UserError(f"the index in {folder} has no picture yet; let the indexing go on, or start it again")

    def state(self) -> State:
        """The newest committed state; it is read again only if something was committed since."""
        with Catalog(self.folder) as catalog:
            version = catalog.fact("version")
        if version != self._state.version:
            self._state = newest_state(self.folder)
        return self._state

    def nearest(self, query: np.ndarray, count: int) -> list[Neighbour]:
        """The pictures of the highest cosines with a unit-norm query float32 [e], the best first.

        Raises:
            UserError: the index is damaged, or usearch, which made it, is not installed here.
        """

        def found() -> list[Neighbour] | None:
            state = self.state()
            rows, cosine = state.best(query, count)
            with Catalog(self.folder) as catalog, catalog.transaction("DEFERRED"):
                if catalog.fact("generation") != state.generation:  # the rows have other numbers now
                    return None
                files = catalog.files_in(rows.tolist())
            return [
                self._neighbour(*files[row], float(value))
                for row, value in zip(rows.tolist(), cosine, strict=True)
                if row in files
            ]

        return _settled(found, self.folder)

    def _neighbour(self, digest: bytes, paths: list[bytes], cosine: float) -> Neighbour:
        return Neighbour(tuple(self.photos / os.fsdecode(path) for path in paths), cosine, digest)

    def picture(self, digest: bytes) -> bytes | None:
        """The encoded bytes of a picture of the index; None if it has none of this digest, or no file has it any more.

        What is read is compared with the digest, so that nothing else is ever returned, whatever lies at that path now.
        """
        with Catalog(self.folder) as catalog:
            files = catalog.files_of(digest)
        contents = (read_content(self.photos, file) for file in files)
        return next((content.encoded for content in contents if content.digest == digest), None)


def newest_state(folder: Path) -> State:
    """The newest committed state of the index in a folder, whatever model made it.

    Raises:
        UserError: there is no index, or it is damaged.
    """
    return _settled(partial(_attempt, folder), folder)


def _attempt(folder: Path) -> State | None:
    with Catalog(folder) as catalog, catalog.transaction("DEFERRED"):
        version, generation = catalog.fact("version"), catalog.fact("generation")
        count, rows = catalog.rows(), catalog.live_rows()
        width, fact = catalog.fact("model")["sizes"]["embed_size"], catalog.fact("rounded")
        complete = catalog.fact("complete")
    live = np.zeros(count, bool)
    live[rows] = True
    # The approximate index is made at the end of an update; until then rows may be missing there.
    usable = fact is not None and fact["generation"] == generation and fact["rows"] == count
    try:
        embeddings = embeddings_file(folder, generation, width).rows(count)
        rounded = rounded_file(folder, generation, width).rows(count) if usable else None
    except FileNotFoundError:  # a new generation has just begun
        return None
    except ValueError as error:
        raise UserError(f"the index in {folder} is damaged: rows are missing; delete that folder") from error
    return State(version, generation, complete, embeddings, live, rounded)


def _settled(attempt: Callable[[], Answer | None], folder: Path) -> Answer:
    for _ in range(_ATTEMPTS):
        if (answer := attempt()) is not None:
            return answer
    raise UserError(f"the index in {folder} is damaged: its embeddings are missing; delete that folder")
