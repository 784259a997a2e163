"""What every corpus has in common: which entries there are, in which order, and how a run of them is read.

A corpus is read in two strokes. First its annotation files are walked once, into a catalog; that fixes the order and
the number of entries. Then the entries are read piece by piece, each piece by any process at any time: what a shard
holds depends on the corpus and the number of shards alone. Corpora that keep images and captions together in archives
have nothing to catalog; their pieces are the archives.
"""

import abc
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from r2d2_jax.data.corpora.catalog import Catalog
from r2d2_jax.data.corpora.images import ImageFolder, ImageStore
from r2d2_jax.data.corpora.lines import parsed_lines
from r2d2_jax.data.entries import Annotation, Entry, Example, Place, UnusableRecord
from r2d2_jax.errors import UserError

SPLIT_NAME = r"[A-Za-z]\w*"  # what TFDS allows
SPLIT_ALIASES = {"val": "validation", "valid": "validation"}
MIN_SHARDS, MAX_SHARDS = 8, 4096  # our decision, where nobody says how many
_SHARD_ENTRIES = 10_000  # our decision: about 200 MB of images at 224 pixels
_SHARD_BYTES = 256 * 2**20  # our decision, of an archive's bytes

Outcome = tuple[Place, str, Annotation | UnusableRecord]  # where, which split ("" for none), what


@dataclass(frozen=True)
class Piece:
    """What is read in one go: entries number `start` to `stop` of the split, or one archive from beginning to end.

    archive: the archive's file; "" for entries of the catalog.
    weight: its size, in entries or in the archive's bytes.
    """

    split: str
    weight: int
    archive: str = ""
    start: int = 0
    stop: int = 0


class Corpus(abc.ABC):
    """A corpus in the files that people have. Instances hold paths only and can be pickled.

    Attributes:
        name: what the dataset is called, also its folder; TFDS's rule: lower-case letters, digits, underscores.
        description: one sentence on what it is.
        homepage: where it comes from, or "".
        unit: what a piece's weight counts, for the progress bar.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    homepage: ClassVar[str] = ""
    unit: ClassVar[str] = " entries"

    def __init__(self, images: str = "", annotations: str = "", text_fields: Sequence[str] = ()) -> None:
        """Takes the places of the corpus.

        Args:
            images: folder of the images, or of the archives.
            annotations: file or folder of the annotations, where they are not in the archives.
            text_fields: which fields hold an image's texts, in corpora that name several.

        Raises:
            UserError: what the corpus needs is not given or not there.
        """
        self.images = _place(images)
        self.annotations = _place(annotations)
        self.text_fields = tuple(text_fields)
        self.check()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels, by number; () for a corpus without labels."""
        return ()

    @abc.abstractmethod
    def check(self) -> None:
        """Raises UserError unless all that the corpus needs is given and there."""

    @abc.abstractmethod
    def inputs(self) -> list[Path]:
        """Annotation files and archives, images in folders excepted: what must not change within a preparation."""

    @abc.abstractmethod
    def index(self, catalog: Catalog) -> None:
        """Walks the annotations once and adds them to the catalog.

        Raises:
            UserError: an annotation file is missing.
        """

    @abc.abstractmethod
    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Which pieces make which shard of which split.

        Args:
            catalog: as `index` left it.
            count: number of shards a split, as far as there is something for each; 0 leaves it to the corpus.
        """

    @abc.abstractmethod
    def read(self, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
        """Reads a piece in order; images are not looked into."""

    def identity(self) -> dict[str, Any]:
        """What a preparation depends on, as plain JSON values: the files with their sizes and times, and the fields."""
        files = {str(path): [(state := path.stat()).st_size, state.st_mtime_ns] for path in self.inputs()}
        return {"corpus": self.name, "images": str(self.images or ""), "files": files,
                "text_fields": list(self.text_fields)}


class AnnotatedCorpus(Corpus):
    """A corpus with annotation files beside its images; annotations of one image become one example.

    Attributes:
        grouped: whether annotations of one image become one example with several captions; else each is an example.
    """

    grouped: ClassVar[bool] = True

    @abc.abstractmethod
    def outcomes(self) -> Iterable[Outcome]:
        """Every annotation, or why it is none, in the order of the files."""

    def image_store(self) -> ImageStore:
        """Where the images are."""
        assert self.images is not None
        return ImageFolder(self.images)

    def check(self) -> None:
        """By default both the images and the annotations must be given."""
        if self.images is None or self.annotations is None:
            raise UserError(f"corpus {self.name} needs --images and --annotations; set both")
        self.image_store()
        for path in self.inputs():
            if not path.is_file():
                raise UserError(f"annotation file {path} does not exist; set --annotations to where the published "
                                "files lie, under their published names")

    def index(self, catalog: Catalog) -> None:
        """Walks images and annotations."""
        self.image_store().index(catalog)
        for place, split, outcome in self.outcomes():
            try:
                if isinstance(outcome, UnusableRecord):
                    raise outcome
                _check_split(split)
                catalog.add(place, split, outcome, grouped=self.grouped)
            except UnusableRecord as reason:
                catalog.skip(place, split, reason)

    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Equal runs of the catalog's entries."""
        return {split: [(Piece(split, stop - start, start=start, stop=stop),)
                        for start, stop in _equal_runs(entries, count or _automatic(entries, _SHARD_ENTRIES))]
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
                named = split if isinstance(outcome, UnusableRecord) else outcome.split or split
                yield place, SPLIT_ALIASES.get(named, named), outcome


class ArchiveCorpus(Corpus):
    """A corpus whose archives hold images and captions together, one archive after the other."""

    unit = "B"

    @abc.abstractmethod
    def archives(self) -> dict[str, list[Path]]:
        """Split -> its archives, in order."""

    def inputs(self) -> list[Path]:
        """All archives."""
        return list(itertools.chain.from_iterable(self.archives().values()))

    def index(self, catalog: Catalog) -> None:
        """Archives are read without a catalog."""

    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Runs of whole archives."""
        planned = {}
        for split, archives in self.archives().items():
            pieces = [Piece(split, path.stat().st_size, archive=str(path)) for path in archives]
            wanted = count or _automatic(sum(piece.weight for piece in pieces), _SHARD_BYTES)
            planned[split] = [tuple(pieces[start:stop]) for start, stop in _equal_runs(len(pieces), wanted)]
        return planned


def _place(path: str) -> Path | None:
    return Path(path).expanduser() if path else None


def _check_split(split: str) -> None:
    if not re.fullmatch(SPLIT_NAME, split):
        raise UnusableRecord(f"{split!r} cannot name a split; use letters, digits and underscores, a letter first")


def _automatic(size: int, wanted: int) -> int:
    return min(MAX_SHARDS, max(MIN_SHARDS, -(-size // wanted)))


def _equal_runs(size: int, count: int) -> list[tuple[int, int]]:
    count = min(size, count)
    return [(index * size // count, (index + 1) * size // count) for index in range(count)]


def _example(store: ImageStore, annotation: Annotation, catalog: Catalog) -> Example | UnusableRecord:
    try:
        image = store.read(annotation.image, catalog)
    except UnusableRecord as error:
        return error
    return Example(image, annotation.captions, annotation.image_id, annotation.label)
