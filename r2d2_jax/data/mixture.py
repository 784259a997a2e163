"""Several corpora as one: their records under common numbers, and the order in which a run reads them."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import grain
import numpy as np

from r2d2_jax.data.records import MAX_OPEN_SHARDS, Record, RecordSource
from r2d2_jax.errors import UserError

# Rows of the stream: more than any run reads. Grain counts batches in floating point, which is exact up to here.
_STREAM_ROWS = 2**52


class Mixture:
    """The training records of one corpus or of several, mixed in fixed shares.

    An epoch has as many rows as all corpora together have records (our decision). Corpus c fills `rows[c]` of them, in
    proportion to its weight. Its rows are spread evenly over the epoch, so every batch has nearly the same shares. Each
    corpus runs through one permutation of its own records after another (see `CorpusOrder`): with more rows than
    records it repeats within the epoch, with fewer it continues in the next epoch where it stopped.

    Attributes:
        sources: the corpora. has_text_ids: whether any of them has identities of texts.
        records: the number of records of each corpus.
        rows: the number of rows of each corpus in an epoch; their sum is the sum of `records`.
    """

    def __init__(self, sources: Sequence[RecordSource], weights: Sequence[float] = ()) -> None:
        """Takes the corpora; all records get numbers, corpus after corpus.

        Args:
            sources: at least one.
            weights: positive, one for each corpus, in any unit: corpus c gives the share weights[c] / sum(weights) of
                all rows. Empty means the numbers of records: then every record comes once an epoch.

        Raises:
            UserError: a corpus has so small a share that it gives no row to an epoch.
        """
        self.sources = tuple(sources)
        self.has_text_ids = any(source.has_text_ids for source in sources)
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
        """Reads a record. Its ids begin with the corpus's number: equal ids in two corpora are two images or texts.

        Raises:
            UserError, UnusableRecord: as `RecordSource`.
        """
        corpus, index = self._locate(number)
        record = self.sources[corpus][index]
        if len(self.sources) == 1 or not record.image_id:
            return record
        # The number, not the folder's name: somebody may move a folder while a run is stopped.
        text_ids = tuple(text_id and f"{corpus}:{text_id}" for text_id in record.text_ids)
        return dataclasses.replace(record, image_id=f"{corpus}:{record.image_id}", text_ids=text_ids)

    def name(self, number: int) -> str:
        """Where a record lies, without reading it."""
        corpus, index = self._locate(number)
        return self.sources[corpus].name(index)

    def following(self, number: int) -> Iterator[int]:
        """All records of the same corpus, starting with this one and going on at the corpus's beginning."""
        corpus, index = self._locate(number)
        count = self.records[corpus]
        return (self._starts[corpus] + (index + ahead) % count for ahead in range(count))

    def order(self, seeds: Sequence[int]) -> "MixtureOrder":
        """The order in which a run reads the records.

        Args:
            seeds: one for each corpus's permutations, 0 to 2**32 - 1.
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


class CorpusOrder:
    """The order of a corpus with many shards: every epoch is a permutation of its n records, window by window.

    If all records were permuted at once, nearly every read would fall into another shard and have to open it first. So
    an epoch permutes the shards, cuts them into windows of shards that can be open together, and permutes the records
    of each window. Row i belongs to epoch i // n; any process computes any row directly.
    """

    def __init__(self, lengths: Sequence[int], seed: int, window_shards: int, rows: int) -> None:
        """Takes the sizes of the shards.

        Args:
            lengths: number of records in each shard, in the order of their numbers.
            seed: 0 to 2**32 - 1.
            window_shards: number of shards in a window, 1 or more.
            rows: the most rows there may be; rounded down to whole epochs.
        """
        self._lengths = np.asarray(lengths, np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._records = int(self._lengths.sum())
        self._seed, self._window_shards = seed, window_shards
        self._rows = rows // self._records * self._records

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> int:
        """The number of the record in this row."""
        epoch, position = divmod(int(row), self._records)
        shards, window_ends = self._epoch(epoch)
        window = int(np.searchsorted(window_ends, position, side="right"))
        ends, permutation = self._window(epoch, window)
        start = int(window_ends[window]) - len(permutation)
        place = permutation[position - start]
        index = int(np.searchsorted(ends, place, side="right"))
        shard = shards[window * self._window_shards + index]
        return int(self._starts[shard] + place - (ends[index] - self._lengths[shard]))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a few orders live as long as the process
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards in an epoch, and the row of the epoch at which each window ends."""
        shards = np.random.default_rng((self._seed, epoch)).permutation(len(self._lengths))
        window_ends = np.cumsum(self._lengths[shards])[self._window_shards - 1 :: self._window_shards]
        if len(shards) % self._window_shards:
            window_ends = np.append(window_ends, self._records)
        return shards, window_ends

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def _window(self, epoch: int, window: int) -> tuple[np.ndarray, grain.MapDataset]:
        """Where each shard of a window ends, and the permutation of its records, which Grain computes item by item."""
        first = window * self._window_shards
        shards = self._epoch(epoch)[0][first : first + self._window_shards]
        ends = np.cumsum(self._lengths[shards])
        seed = int(np.random.SeedSequence((self._seed, epoch, window)).generate_state(1)[0])
        return ends, grain.MapDataset.range(int(ends[-1])).shuffle(seed=seed)


class MixtureOrder:
    """The record's number for each row of an endless run; any process computes any row directly."""

    def __init__(self, mixture: Mixture, seeds: Sequence[int]) -> None:
        """Takes the seed of each corpus's own order; see `CorpusOrder`."""
        # Half of the shards that may be open: at the end of a window, reads of it and of the next one overlap.
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
    """The order of one corpus: one permutation of everything if all shards fit into a window, else window by window."""
    if len(source.shard_lengths) <= window_shards:
        return grain.MapDataset.range(len(source)).shuffle(seed=seed)  # another permutation beyond every end
    return CorpusOrder(source.shard_lengths.tolist(), seed, window_shards, _STREAM_ROWS)


def evenly_spread(row: int, rows: Sequence[int]) -> tuple[int, int]:
    """Which corpus fills a row of the stream, and which of that corpus's own rows it is.

    In every epoch, sum(rows) rows, corpus c fills exactly rows[c]. The first corpus takes a row of the stream wherever
    ceil(row * rows[0] / sum(rows)) grows; the second corpus does the same with the rows that are left, and so on. This
    is the rule of Grain's `MapDataset.mix`, but exact: Grain rounds its proportions to whole per cents of the smallest.
    """
    corpus, left, here, after = 0, sum(rows), row, row + 1
    while True:
        # How many of the first `here` and of the first `after` rows go to the corpora after this one.
        passed, passed_after = (count * (left - rows[corpus]) // left for count in (here, after))
        if passed == passed_after:
            return corpus, here - passed
        left, here, after = left - rows[corpus], passed, passed_after
        corpus += 1
