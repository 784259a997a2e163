"""The two sources of a check, read part by part: a corpus in its published files, and a prepared dataset."""

import abc
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tensorflow_datasets as tfds

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.records import RecordSource, dataset_folder, dataset_info
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.corpus import Corpus, Piece
from r2d2_jax.preparation.examples import Entry, Example
from r2d2_jax.preparation.prepare import build_catalog

PART_RECORDS = 10_000  # our decision, as many as a corpus gives to a shard


class DamagedShard(UnusableRecord):
    """A record is lost because its shard is missing or cannot be opened."""

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(reason)
        self.shard = shard


@dataclass(frozen=True)
class Part:
    """A run of entries that one task reads.

    number: from 0, over all splits. weight: its size, in the source's unit.
    pieces: of a corpus. shard, start, stop: of a dataset, the shard's number and a range of the split's records.
    """

    number: int
    split: str
    weight: int
    pieces: tuple[Piece, ...] = ()
    shard: int = 0
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class UnusableLines:
    """Unusable annotations: split ("" for those that name none) -> number, and the first few lines."""

    counts: dict[str, int] = field(default_factory=dict)
    first: tuple[str, ...] = ()


class Source(abc.ABC):
    """Base of what a check reads; instances can be pickled for other processes.

    Attributes:
        unit: what the weight of a part counts, for the progress bar.
        class_names: names of the labels, by number; () without labels.
    """

    unit: str
    class_names: tuple[str, ...]

    @abc.abstractmethod
    def parts(self) -> list[Part]:
        """All parts, split by split."""

    @abc.abstractmethod
    def read(self, part: Part) -> Iterator[Entry]:
        """Reads a part in order, without decoding images."""

    def entry(self, part: Part, number: int) -> Entry:
        """Reads one entry of a part again; `number` counts from 0."""
        return next(itertools.islice(self.read(part), number, None))

    def unusable_lines(self, count: int) -> UnusableLines:
        """The annotations that were unusable, with the first `count` of them."""
        return UnusableLines()

    def shard_records(self) -> dict[str, list[int]] | None:
        """Split -> number of records in each of its shards; None for a corpus that is not prepared."""
        return None


class CorpusSource(Source):
    """A corpus, with its catalog in a folder of its own."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        """Walks the annotations.

        Raises:
            UserError: an annotation file is missing.
        """
        self._corpus, self._catalog = corpus, build_catalog(corpus, folder / "catalog.sqlite")
        self.unit, self.class_names = corpus.unit, corpus.class_names

    def parts(self) -> list[Part]:
        """One part for each shard that a preparation would write."""
        planned = self._corpus.shards(self._catalog, 0)
        shards = [(split, pieces) for split, shards_of in planned.items() for pieces in shards_of]
        return [
            Part(number, split, sum(piece.weight for piece in pieces), pieces)
            for number, (split, pieces) in enumerate(shards)
        ]

    def read(self, part: Part) -> Iterator[Entry]:
        """Reads the part's pieces."""
        catalog = Catalog(self._catalog.path)
        for piece in part.pieces:
            yield from self._corpus.read(piece, catalog)
        catalog.close()

    def entry(self, part: Part, number: int) -> Entry:
        """Reads one entry, without those before it if the catalog numbers them."""
        piece = part.pieces[0]
        if piece.archive or len(part.pieces) > 1:
            return super().entry(part, number)
        alone = dataclasses.replace(piece, weight=1, start=piece.start + number, stop=piece.start + number + 1)
        return super().entry(dataclasses.replace(part, pieces=(alone,)), 0)

    def unusable_lines(self, count: int) -> UnusableLines:
        """The lines that the catalog skipped."""
        first = tuple(itertools.islice(self._catalog.skipped_lines(), count))
        return UnusableLines(self._catalog.skipped(), first)


class DatasetSource(Source):
    """A prepared dataset."""

    unit = " records"

    def __init__(self, directory: str) -> None:
        """Reads the dataset's metadata.

        Raises:
            UserError: there is no dataset, it is damaged, or its records are of another kind.
        """
        folder = dataset_folder(directory)
        info = dataset_info(folder)
        self._splits = {split: RecordSource(folder, split, complete=False) for split in info.splits}
        self._lengths = {split: list(info.splits[split].shard_lengths) for split in info.splits}
        self._files = {split: [Path(path).name for path in info.splits[split].filepaths] for split in info.splits}
        label = dict(info.features.items()).get("label")
        self.class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()

    def parts(self) -> list[Part]:
        """Runs of at most 10,000 records of one shard."""
        numbers = itertools.count()
        return [
            Part(next(numbers), split, stop - start, shard=shard, start=start, stop=stop)
            for split, lengths in self._lengths.items()
            for shard, start, stop in _runs(lengths)
        ]

    def read(self, part: Part) -> Iterator[Entry]:
        """Reads records; a shard that cannot be opened gives as many unusable entries as it should have records."""
        source = self._splits[part.split]
        damage: DamagedShard | None = None
        for index in range(part.start, part.stop):
            if damage is None:
                try:
                    yield self.entry(part, index - part.start)
                    continue
                except UserError as error:
                    damage = DamagedShard(self._files[part.split][part.shard], str(error))
            yield Entry(source.name(index), damage)

    def entry(self, part: Part, number: int) -> Entry:
        """Reads one record.

        Raises:
            UserError: its shard is missing or cannot be opened.
        """
        source, index = self._splits[part.split], part.start + number
        try:
            record = source[index]
        except UnusableRecord as error:
            return Entry(source.name(index), error)
        example = Example(record.image, record.captions, record.image_id, record.label, record.text_ids)
        return Entry(record.name, example)

    def shard_records(self) -> dict[str, list[int]]:
        """The numbers in the dataset's metadata."""
        return self._lengths


def vocabulary_of(directory: str) -> str | None:
    """The vocab.txt that lies beside the dataset in a prepared folder; None if there is none.

    Raises:
        UserError: there is no dataset.
    """
    path = dataset_folder(directory).parent.parent / "vocab.txt"
    return str(path) if path.is_file() else None


def _runs(lengths: list[int]) -> Iterator[tuple[int, int, int]]:
    end = 0
    for shard, length in enumerate(lengths):
        end += length
        for start in range(end - length, end, PART_RECORDS):
            yield shard, start, min(end, start + PART_RECORDS)
