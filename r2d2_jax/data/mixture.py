"""Several corpora as one: their records under common numbers, and the order in which a run reads them."""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import grain

from r2d2_jax.data.records import Record, RecordSource
from r2d2_jax.data.shards import MAX_OPEN_SHARDS
from r2d2_jax.data.shuffle import CorpusOrder
from r2d2_jax.errors import UserError

# Rows of the stream: more than any run has, and exact in the floating-point numbers in which Grain counts batches.
_STREAM_ROWS = 2**52


class Mixture:
    """The training records of one corpus or of several, mixed in fixed shares.

    An epoch has as many rows as there are records in all corpora together (our decision). Of these, corpus c gives
    `rows[c]`, as its weight says; within an epoch they are spread evenly, so every batch has nearly the shares of the
    whole. Each corpus goes through permutation after permutation of its own records (see `CorpusOrder`): one that
    gives more rows than it has records is repeated within the epoch, one that gives fewer goes on in the next where it
    stopped.

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
                raise UserError(
                    f"the weight of corpus {source.folder} is so small that an epoch of {len(self)} rows "
                    "has none of it; raise its number in data.corpus_weights, or leave the corpus out"
                )

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

    def order(self, seeds: Sequence[int]) -> "MixtureOrder":
        """The order in which a run reads the records.

        Args:
            seeds: of the permutations of each corpus, 0 to 2**32 - 1.
        """
        return MixtureOrder(self, seeds)

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


class MixtureOrder:
    """Which record comes in row i of a run without end, by its number; any row is found at once, on any process."""

    def __init__(self, mixture: Mixture, seeds: Sequence[int]) -> None:
        """Takes the seed of each corpus's own order; see `CorpusOrder`."""
        # Where one window ends and the next begins, the shards of both fit among those that may be open.
        window_shards = max(1, MAX_OPEN_SHARDS // (2 * len(mixture.sources)))
        self._orders = [_order(*corpus, window_shards) for corpus in zip(mixture.sources, seeds, strict=True)]
        self._starts = [*itertools.accumulate(mixture.records, initial=0)]
        self._rows = mixture.rows

    def __len__(self) -> int:
        return _STREAM_ROWS

    def __getitem__(self, row: int) -> int:
        corpus, own = evenly_spread(row, self._rows)
        return self._starts[corpus] + self._orders[corpus][own]


def _order(source: RecordSource, seed: int, window_shards: int) -> grain.MapDataset | CorpusOrder:
    """The order of one corpus: permuted as a whole if all of its shards can be open, else window by window."""
    if len(source.shard_lengths) <= window_shards:
        return grain.MapDataset.range(len(source)).shuffle(seed=seed)  # another permutation beyond every end
    return CorpusOrder(source.shard_lengths.tolist(), seed, window_shards, _STREAM_ROWS)


def evenly_spread(row: int, rows: Sequence[int]) -> tuple[int, int]:
    """Which corpus gives a row of the stream, and which of that corpus's own rows it is.

    Of any sum(rows) rows from a multiple of it on, corpus c gives exactly rows[c]. The first corpus takes a row of the
    stream wherever ceil(row * rows[0] / sum(rows)) grows, the second does the same with those that are left, and so
    on; the rule of Grain's `MapDataset.mix`, which rounds its proportions to whole per cents of the smallest.
    """
    corpus, left, here, after = 0, sum(rows), row, row + 1
    while True:
        # How many of the first `here` and `after` rows are left to the corpora that follow.
        passed, passed_after = (count * (left - rows[corpus]) // left for count in (here, after))
        if passed == passed_after:
            return corpus, here - passed
        left, here, after = left - rows[corpus], passed, passed_after
        corpus += 1
