"""Corpora with annotation files beside their images."""

import abc
import collections
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from r2d2_jax.data.corpora.catalog import Catalog
from r2d2_jax.data.corpora.corpus import SPLIT_ALIASES, SPLIT_NAME, Corpus, Piece, equal_runs, fitting_shards
from r2d2_jax.data.corpora.images import ImageFolder, ImageStore
from r2d2_jax.data.corpora.lines import parsed_lines
from r2d2_jax.data.entries import Annotation, Entry, Example, Place, UnusableRecord
from r2d2_jax.errors import UserError, bulleted

_SHARD_ENTRIES = 10_000  # our decision: about 200 MB of images at 224 pixels

# Where, which split ("" for none), what: one annotation for each image that is spoken of, or why there is none.
Outcome = tuple[Place, str, Sequence[Annotation] | UnusableRecord]


class AnnotatedCorpus(Corpus):
    """A corpus with annotation files beside its images; annotations of one image become one example.

    Attributes:
        grouped: whether annotations of one image become one example with several captions; else each is an example.
    """

    grouped: ClassVar[bool] = True

    @abc.abstractmethod
    def outcomes(self) -> Iterable[Outcome]:
        """Everything that is annotated, in the order of the files."""

    def image_store(self) -> ImageStore:
        """Where the images are."""
        assert self.images is not None
        return ImageFolder(self.images)

    def check(self) -> None:
        """Images and annotation files must be there."""
        super().check()
        self.image_store()
        absent = [str(path) for path in self.inputs() if not path.is_file()]
        if absent:
            does = "does" if len(absent) == 1 else "and others do"
            raise UserError(f"annotation file {absent[0]} {does} not exist; set --annotations to where the published "
                            f"files lie, under their published names (docs/corpora.md):\n{bulleted(absent)}")

    def index(self, catalog: Catalog) -> None:
        """Walks images and annotations."""
        self.image_store().index(catalog)
        imageless: collections.Counter[str] = collections.Counter()
        for place, split, outcome in self.outcomes():
            try:
                if isinstance(outcome, UnusableRecord):
                    raise outcome
                _check_split(split)
                for annotation in outcome:
                    catalog.add(place, split, annotation, grouped=self.grouped)
                imageless[split] += not outcome
            except UnusableRecord as reason:
                catalog.skip(place, split, reason)
        for split, count in (+imageless).items():
            catalog.remark(f"{split}: {count:,} texts name no image (no truth is published for them); left out")

    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Equal runs of the catalog's entries."""
        return {split: [(Piece(split, stop - start, start=start, stop=stop),)
                        for start, stop in equal_runs(entries, count or fitting_shards(entries, _SHARD_ENTRIES))]
                for split, entries in catalog.sizes().items()}

    def read(self, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
        """Reads the entries and their images."""
        store = self.image_store()
        for place, annotation in catalog.entries(piece.split, piece.start, piece.stop):
            yield Entry(str(place), _example(store, annotation, catalog))


class LineCorpus(AnnotatedCorpus):
    """A corpus with one annotation a line."""

    @abc.abstractmethod
    def files(self) -> list[tuple[str, Path]]:
        """Split ("" where the lines say it) and path of every annotation file, in order."""

    @abc.abstractmethod
    def parse(self, line: str) -> Annotation:
        """Reads one line; raises UnusableRecord with the reason why it is no annotation."""

    def inputs(self) -> list[Path]:
        """The annotation files."""
        return [path for _, path in self.files()]

    def outcomes(self) -> Iterator[Outcome]:
        """Every line's annotation."""
        for split, path in self.files():
            for place, outcome in parsed_lines(path, self.parse):
                yield one_annotation(place, split, outcome)


def one_annotation(place: Place, split: str, outcome: Annotation | UnusableRecord) -> Outcome:
    """An outcome of a single annotation; the split is its own if it names one."""
    if isinstance(outcome, UnusableRecord):
        return place, SPLIT_ALIASES.get(split, split), outcome
    named = outcome.split or split
    return place, SPLIT_ALIASES.get(named, named), (outcome,)


def _check_split(split: str) -> None:
    if not re.fullmatch(SPLIT_NAME, split):
        raise UnusableRecord(f"{split!r} cannot name a split; use letters, digits and underscores, a letter first")


def _example(store: ImageStore, annotation: Annotation, catalog: Catalog) -> Example | UnusableRecord:
    try:
        image = store.read(annotation.image, catalog)
    except UnusableRecord as error:
        return error
    return Example(image, annotation.captions, annotation.image_id, annotation.label)
