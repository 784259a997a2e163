"""Corpora whose archives hold images and texts together: tars, Parquet files, folders of samples."""

import abc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.corpus import Corpus, Piece, equal_runs, fitting_shards
from r2d2_jax.preparation.corpora.formats.fields import chosen_texts, readable
from r2d2_jax.preparation.corpora.formats.samples import Found
from r2d2_jax.preparation.examples import Entry, Example

_SHARD_BYTES = 256 * 2**20  # of archives in a shard; our decision


class ArchiveCorpus(Corpus):
    """A corpus whose archives hold images and texts together."""

    unit = "B"
    needs = ("images",)

    @abc.abstractmethod
    def archives(self) -> dict[str, list[Path]]:
        """Split -> its archives, in order."""

    @abc.abstractmethod
    def samples(self, archive: Path) -> Iterator[Found]:
        """Reads an archive from beginning to end, one sample in memory at a time."""

    @abc.abstractmethod
    def image_id(self, archive: Path, key: str, fields: dict[str, Any]) -> str:
        """The identity of a sample's image."""

    def check(self) -> None:
        """Checks that the folder exists."""
        super().check()
        if not self.images.is_dir():
            problem = "is a file" if self.images.exists() else "does not exist"
            raise UserError(f"folder {self.images} {problem}; set --images to the folder with the archives")

    def weight(self, archive: Path) -> int:
        """The size of an archive in bytes."""
        return archive.stat().st_size

    def inputs(self) -> list[Path]:
        """All archives."""
        return list(itertools.chain.from_iterable(self.archives().values()))

    def index(self, catalog: Catalog) -> None:
        """Archives are read without a catalog."""

    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Runs of whole archives."""
        planned = {}
        for split, archives in self.archives().items():
            pieces = [Piece(split, self.weight(path), archive=str(path)) for path in archives]
            wanted = count or fitting_shards(sum(piece.weight for piece in pieces), _SHARD_BYTES)
            planned[split] = [tuple(pieces[start:stop]) for start, stop in equal_runs(len(pieces), wanted)]
        return planned

    def read(self, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
        """Reads an archive. Places are ARCHIVE#KEY; the second of M lost samples and all after it, ARCHIVE#lost N of M.

        Raises:
            UserError: the archive does not exist any more.
        """
        archive, reached = Path(piece.archive), 0
        if not archive.exists():
            raise UserError(f"archive {archive} has gone; put it back and start again: finished shards are kept")
        for found in self.samples(archive):
            place = f"{archive}#{found.key}" if found.key else str(archive)
            outcome = self._outcome(archive, found)
            yield Entry(readable(place), outcome, found.reached - reached)
            reached = found.reached
            for number in range(2, found.lost + 1):
                yield Entry(readable(f"{archive}#lost {number} of {found.lost}"), UnusableRecord("as above"), 0)

    def name_in_corpus(self, archive: Path) -> str:
        """The archive's path within the folder of the archives."""
        return readable(archive.relative_to(self.images).as_posix())

    def _outcome(self, archive: Path, found: Found) -> Example | UnusableRecord:
        sample = found.outcome
        if isinstance(sample, UnusableRecord):
            return sample
        try:
            texts = chosen_texts(sample.fields, self.text_fields)
            return Example(sample.image, texts, self.image_id(archive, readable(found.key), sample.fields))
        except UnusableRecord as error:
            return error
