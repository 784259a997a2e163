"""The order in which a run goes through the records of one corpus.

A permutation of all records would have every read fall into another shard: of a corpus in thousands of shards, nearly
every read would have to open one first. So the shards are permuted, windows of a number of shards that can be open at
once are taken from that, and all records of a window are permuted. A corpus of one window, which is most, is permuted
as a whole. Other windows and other permutations make every epoch.
"""

import functools
from collections.abc import Sequence

import grain
import numpy as np


class CorpusOrder:
    """Which record comes in row i of a run without end; any row is found at once, on any process.

    Row i belongs to epoch i // n of the n records, and the rows of an epoch are all records, each once.
    """

    def __init__(self, lengths: Sequence[int], seed: int, window_shards: int, rows: int) -> None:
        """Takes the sizes of the shards.

        Args:
            lengths: number of records in each shard, in the order of their numbers.
            seed: 0 to 2**32 - 1.
            window_shards: how many shards make a window, 1 or more.
            rows: at most so many rows, rounded down to whole epochs.
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

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a handful of orders live as long as the process
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in an epoch's order, and the row of the epoch at which each window ends."""
        shards = np.random.default_rng((self._seed, epoch)).permutation(len(self._lengths))
        window_ends = np.cumsum(self._lengths[shards])[self._window_shards - 1 :: self._window_shards]
        if len(shards) % self._window_shards:
            window_ends = np.append(window_ends, self._records)
        return shards, window_ends

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def _window(self, epoch: int, window: int) -> tuple[np.ndarray, grain.MapDataset]:
        """Where each shard of a window ends, and the permutation of its records, computed place by place, not held."""
        first = window * self._window_shards
        shards = self._epoch(epoch)[0][first : first + self._window_shards]
        ends = np.cumsum(self._lengths[shards])
        seed = int(np.random.SeedSequence((self._seed, epoch, window)).generate_state(1)[0])
        return ends, grain.MapDataset.range(int(ends[-1])).shuffle(seed=seed)
