"""Several corpora as one: their records under common numbers, and the order in which a run reads them."""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import grain

from r2d2_jax.data.records import Record, RecordSource
from r2d2_jax.errors import UserError

# Rows of the stream: more than any run has, and exact in the floating-point numbers in which Grain counts batches. Its
# own endless repetition overflows there when a process has one row of every batch.
_STREAM_ROWS = 2**52


class Mixture:
    """The training records of one corpus or of several, mixed in fixed shares.

    An epoch has as many rows as there are records in all corpora together (our decision). Of these, corpus c gives
    `rows[c]`, as its weight says; within an epoch they are spread evenly, so every batch has nearly the shares of the
    whole. Each corpus goes through permutation after permutation of its own records: one that gives more rows than it
    has records is repeated within the epoch, one that gives fewer goes on in the next where it stopped.

    Attributes:
        sources: the corpora.
        records: how many records each has.
        rows: how many rows each gives to an epoch; they sum up to the number of all records.
    """

    def __init__(self, sources: Sequence[RecordSource], weights: Sequence[float] = ()) -> None:
        """Takes the corpora; all records get numbers, corpus after corpus.

        Args:
            sources: at least one.
            weights: positive, one for each corpus, in any unit: corpus c gives the share weights[c] / sum(weights) of
                all rows. None at all stand for the numbers of records, with which every record comes once an epoch.

        Raises:
            UserError: a corpus has so small a share that it gives no row to an epoch.
        """
        self.sources = tuple(sources)
        self.records = tuple(len(source) for source in sources)
        self.rows = _rows(self.records, weights)
        self._starts = (0, *itertools.accumulate(self.records))
        for source, rows in zip(sources, self.rows, strict=True):
            if not rows:
                raise UserError(f"the weight of corpus {source.folder} is so small that an epoch of {len(self)} rows "
                                "has none of it; raise its number in data.corpus_weights, or leave the corpus out")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> Record:
        """Reads a record; its image's identity names the corpus, so equal names in two corpora are two images.

        Raises:
            UserError, UnusableRecord: as `RecordSource`.
        """
        corpus, index = self._locate(number)
        record = self.sources[corpus][index]
        if len(self.sources) == 1 or not record.image_id:
            return record
        # The corpus's number, not its folder's name: folders may move while a run is stopped.
        return dataclasses.replace(record, image_id=f"{corpus}:{record.image_id}")

    def name(self, number: int) -> str:
        """Where a record lies, without reading it."""
        corpus, index = self._locate(number)
        return self.sources[corpus].name(index)

    def following(self, number: int) -> Iterator[int]:
        """All records of the same corpus, from this one on, around the end."""
        corpus, index = self._locate(number)
        count = self.records[corpus]
        return (self._starts[corpus] + (index + ahead) % count for ahead in range(count))

    def order(self, seeds: Sequence[int]) -> grain.MapDataset:
        """The numbers of the records in the order of a run, without end; any place of it is found at once.

        Args:
            seeds: of the permutations of each corpus, 0 to 2**32 - 1.
        """
        orders = [
            grain.MapDataset.range(start, start + count).shuffle(seed=seed).repeat(_STREAM_ROWS // count)
            for start, count, seed in zip(self._starts, self.records, seeds, strict=False)
        ]
        if len(orders) == 1:
            return orders[0]
        return grain.MapDataset.select_from_datasets(orders, EvenlySpread(self.rows))

    def _locate(self, number: int) -> tuple[int, int]:
        """The corpus's number and the record's within it."""
        corpus = bisect.bisect_right(self._starts, number) - 1
        return corpus, int(number) - self._starts[corpus]


def _rows(records: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """How many of sum(records) rows each corpus gives: its share, rounded by the largest remainder."""
    weighed = [Fraction(weight) for weight in weights or records]
    exact = [sum(records) * weight / sum(weighed) for weight in weighed]
    rows = [int(share) for share in exact]
    by_remainder = sorted(range(len(rows)), key=lambda corpus: rows[corpus] - exact[corpus])
    for corpus in by_remainder[: sum(records) - sum(rows)]:
        rows[corpus] += 1
    return tuple(rows)


class EvenlySpread(grain.transforms.DatasetSelectionMap):
    """Which corpus gives row i of the stream, and which of its own rows that is.

    Of any len = sum(rows) rows from a multiple of it on, corpus c gives exactly rows[c]. The first corpus takes a row
    of the stream wherever ceil(i * rows[0] / len) grows, the second does the same with those that are left, and so on;
    the rule of Grain's `MapDataset.mix`, which rounds its proportions to whole per cents of the smallest.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return _STREAM_ROWS

    def __getitem__(self, index: int) -> tuple[int, int]:
        left, here = sum(self._rows), index
        after = here + 1
        for corpus, rows in enumerate(self._rows):
            # How many of the first `here` and `after` rows are left to the corpora that follow.
            passed, passed_after = (count * (left - rows) // left for count in (here, after))
            if passed == passed_after:
                return corpus, here - passed
            left, here, after = left - rows, passed, passed_after
        raise IndexError(index)
