"""Corpora with annotation files beside their images."""

import abc
import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError, bulleted
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.corpus import SPLIT_ALIASES, Corpus, Piece, equal_runs, fitting_shards, split_problem
from r2d2_jax.preparation.corpora.formats.lines import parsed_lines
from r2d2_jax.preparation.corpora.image_stores import ImageFolder, ImageStore
from r2d2_jax.preparation.examples import Annotation, Entry, Example, Place

_SHARD_ENTRIES = 10_000  # our decision: about 200 MB of images at 224 pixels

# The place, the split ("" for none), and one annotation for each image there, or why there is none.
AnnotatedEntry = tuple[Place, str, Sequence[Annotation] | UnusableRecord]


class AnnotatedCorpus(Corpus):
    """A corpus with annotation files beside its images.

    Attributes:
        grouped: whether all annotations of an image become one example with several captions; else each is an example.
    """

    grouped: ClassVar[bool] = True

    @abc.abstractmethod
    def outcomes(self) -> Iterable[AnnotatedEntry]:
        """All annotations, in the order of the files."""

    def annotation_files(self) -> list[Path]:
        """The inputs that must have annotations; one without any must be in another form than expected."""
        return self.inputs()

    def image_store(self) -> ImageStore:
        """Where the images are."""
        return ImageFolder(self.images)

    def check(self) -> None:
        """Checks that images and annotation files exist."""
        super().check()
        self.image_store()
        absent = [str(path) for path in self.inputs() if not path.is_file()]
        if absent:
            does, others = ("and others do", f":\n{bulleted(absent)}") if absent[1:] else ("does", "")
            raise UserError(
                f"annotation file {absent[0]} {does} not exist; set --annotations to where it lies; published "
                f"files keep their published names (docs/corpora.md){others}"
            )

    def index(self, catalog: Catalog) -> None:
        """Walks images and annotations.

        Raises:
            UserError: an annotation file is missing, or has no usable entry although others have: its whole split
                would be lost and count as one unusable entry.
        """
        self.image_store().index(catalog)
        imageless: collections.Counter[str] = collections.Counter()
        usable: set[str] = set()
        first_reasons: dict[str, str] = {}
        for place, split, outcome in self.outcomes():
            reason = self._added(catalog, place, split, outcome)
            if reason is not None:
                catalog.skip(place, split, reason)
                first_reasons.setdefault(place.file, f" Its first unusable entry is {place}: {reason}")
                continue
            usable.add(place.file)
            if not outcome:
                imageless[split] += 1
        self._check_usable(usable, first_reasons)
        for split, count in imageless.items():
            catalog.remark(f"{split}: {count:,} texts name no image (no truth is published for them); left out")

    def _check_usable(self, usable: set[str], first_reasons: Mapping[str, str]) -> None:
        files = [str(path) for path in self.annotation_files()]
        useless = [path for path in files if path not in usable]
        if useless and len(useless) < len(files):
            path = useless[0]
            raise UserError(
                f"annotation file {path} holds no usable annotation: it is empty, or not of the form that "
                f"corpus {self.name} has (docs/corpora.md); put the right file there, or move it away."
                f"{first_reasons.get(path, '')}"
            )

    def _added(
        self, catalog: Catalog, place: Place, split: str, outcome: Sequence[Annotation] | UnusableRecord
    ) -> UnusableRecord | None:
        """Adds an outcome's annotations; returns the reason if that is not possible."""
        if isinstance(outcome, UnusableRecord):
            return outcome
        try:
            _check_split(split)
            for annotation in outcome:
                catalog.add(place, split, annotation, grouped=self.grouped)
        except UnusableRecord as reason:
            return reason
        return None

    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Equal runs of the catalog's entries."""
        return {
            split: [
                (Piece(split, stop - start, start=start, stop=stop),)
                for start, stop in equal_runs(entries, count or fitting_shards(entries, _SHARD_ENTRIES))
            ]
            for split, entries in catalog.sizes().items()
        }

    def read(self, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
        """Reads the entries and their images."""
        store = self.image_store()
        for place, annotation in catalog.entries(piece.split, piece.start, piece.stop):
            yield Entry(str(place), _example(store, annotation, catalog))


class LineCorpus(AnnotatedCorpus):
    """A corpus with one annotation a line."""

    @abc.abstractmethod
    def files(self) -> list[tuple[str, Path]]:
        """Split ("" if each line names it) and path of every annotation file, in order."""

    @abc.abstractmethod
    def parse(self, line: str) -> Annotation:
        """Reads one line; raises UnusableRecord if it is no annotation."""

    def inputs(self) -> list[Path]:
        """The annotation files."""
        return [path for _, path in self.files()]

    def outcomes(self) -> Iterator[AnnotatedEntry]:
        """Every line's annotation."""
        for split, path in self.files():
            for place, outcome in parsed_lines(path, self.parse):
                yield one_annotation(place, split, outcome)


def one_annotation(place: Place, split: str, outcome: Annotation | UnusableRecord) -> AnnotatedEntry:
    """The outcome of a single annotation; a split that the annotation names has precedence."""
    if isinstance(outcome, UnusableRecord):
        return place, SPLIT_ALIASES.get(split, split), outcome
    named = outcome.split or split
    return place, SPLIT_ALIASES.get(named, named), (outcome,)


def _check_split(split: str) -> None:
    if problem := split_problem(split):
        raise UnusableRecord(problem)


def _example(store: ImageStore, annotation: Annotation, catalog: Catalog) -> Example | UnusableRecord:
    try:
        image = store.read(annotation.image, catalog)
    except UnusableRecord as error:
        return error
    return Example(image, annotation.captions, annotation.image_id, annotation.label, annotation.text_ids)
