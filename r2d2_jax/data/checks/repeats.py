"""What occurs more than once in a corpus, within a split and across splits, found by sorting hashes on disk.

Every part of a corpus leaves a file of rows, one for each different thing in it, sorted by the thing's hash. Rows of
the same hash add up to one row again, which is the same whether few or many parts saw the thing. To compare the parts,
the range of all hashes is cut into stretches of about two million rows; a stretch of every file is read, put together
and counted. Memory therefore depends on that number alone. SQLite would do the same with an index of every caption,
which is slower to fill by an order of magnitude.

Hashes have 64 bits: among a thousand million different captions two would be taken for the same with a probability of
about 3 in 100.
"""

import dataclasses
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from r2d2_jax.data.checks.figures import FIRST_NAMES

_STRETCH_ROWS = 2**21
_ROW = np.dtype([
    ("key", "<u8"),  # hash of the thing: a caption, an image's bytes or its identity
    ("split", "<u2"),
    ("task", "<u4"),  # the part that saw it first, and which of that part's entries
    ("entry", "<u4"),
    ("image", "<u8"),  # hash of the identity of the first image that it belongs to
    ("several", "?"),  # whether it belongs to several images; if so, where another image was first seen with it
    ("other_task", "<u4"),
    ("other_entry", "<u4"),
    ("count", "<u4"),
])


def hash_of(content: bytes) -> int:
    """64 bits of blake2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class Sightings:
    """What one part of a corpus holds of one kind: captions, images or identities."""

    def __init__(self) -> None:
        self._keys, self._images, self._entries = array("Q"), array("Q"), array("I")

    def add(self, key: int, image: int, entry: int) -> None:
        """Notes a thing's hash, the hash of its image's identity, and the number of the entry within the part."""
        self._keys.append(key)
        self._images.append(image)
        self._entries.append(entry)

    def write(self, path: Path, *, split: int, task: int) -> None:
        """Writes them as sorted rows; `split` and `task` are the numbers of the split and of the part."""
        rows = np.zeros(len(self._keys), _ROW)
        rows["key"], rows["image"], rows["entry"] = self._keys, self._images, self._entries
        rows["split"], rows["task"], rows["count"] = split, task, 1
        _added_up(rows).tofile(path)


@dataclass(frozen=True)
class Sighting:
    """Where a thing was seen first, and how often in all: the thing's hash, the part and the entry in it.

    several: whether several images have it. other_task, other_entry: where the second of these was seen.
    """

    key: int
    task: int
    entry: int
    count: int
    several: bool
    other_task: int
    other_entry: int


@dataclass
class Repeats:
    """What the sightings of one kind come to. Splits are meant by their numbers.

    different: split -> number of different things.
    repeated: split -> how many occurrences belong to things that several images of the split have.
    most_frequent: split -> the five that occur most often among these.
    shared: (split, other) -> how many occurrences in the first split are of things that the other split has too.
    first_shared: (split, other) -> the first five of these things, as they occur in the one and in the other.
    """

    different: Counter[int] = field(default_factory=Counter)
    repeated: Counter[int] = field(default_factory=Counter)
    most_frequent: dict[int, list[Sighting]] = field(default_factory=dict)
    shared: Counter[tuple[int, int]] = field(default_factory=Counter)
    first_shared: dict[tuple[int, int], list[tuple[Sighting, Sighting]]] = field(default_factory=dict)


def find_repeats(paths: Sequence[Path]) -> Repeats:
    """Compares the sightings of all parts.

    Args:
        paths: what `Sightings.write` wrote for every part, in the order of the parts.
    """
    repeats = Repeats()
    for rows in _stretches(paths):
        rows = _added_up(rows)
        _count_within(rows, repeats)
        _count_across(rows, repeats)
    return repeats


def _added_up(rows: np.ndarray) -> np.ndarray:
    """One row for each thing in each split, sorted by hash; the first row of a thing says where it was seen first."""
    rows = rows[np.lexsort((rows["split"], rows["key"]))]  # stable: the parts stay in order
    if not len(rows):
        return rows
    starts = _starts(rows, "key", "split")
    summed = rows[starts]
    summed["count"] = np.add.reduceat(rows["count"], starts)
    thing = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
    another = rows["image"] != summed["image"][thing]
    witnesses = np.flatnonzero(another | rows["several"])
    things, first = np.unique(thing[witnesses], return_index=True)
    witnesses = witnesses[first]
    summed["several"][things] = True
    for other, own in (("other_task", "task"), ("other_entry", "entry")):
        summed[other][things] = np.where(another[witnesses], rows[own][witnesses], rows[other][witnesses])
    return summed


def _starts(rows: np.ndarray, *fields: str) -> np.ndarray:
    """Where rows begin that differ in these fields from the row before."""
    changes = np.zeros(len(rows), bool)
    changes[:1] = True
    for name in fields:
        changes[1:] |= rows[name][1:] != rows[name][:-1]
    return np.flatnonzero(changes)


def _stretches(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    rows = sum(path.stat().st_size for path in paths) // _ROW.itemsize
    count = max(1, -(-rows // _STRETCH_ROWS))
    limits = np.array([index * 2**64 // count for index in range(1, count)], np.uint64)
    cuts = [_cuts(path, limits) for path in paths]
    for stretch in range(count):
        yield np.concatenate([np.zeros(0, _ROW), *(
            np.fromfile(path, _ROW, cut[stretch + 1] - cut[stretch], offset=cut[stretch] * _ROW.itemsize)
            for path, cut in zip(paths, cuts, strict=True) if cut[stretch + 1] > cut[stretch])])


def _cuts(path: Path, limits: np.ndarray) -> list[int]:
    keys = np.fromfile(path, _ROW)["key"]
    return [0, *np.searchsorted(keys, limits).tolist(), len(keys)]


def _count_within(rows: np.ndarray, repeats: Repeats) -> None:
    for split in np.unique(rows["split"]).tolist():
        own = rows[rows["split"] == split]
        repeats.different[split] += len(own)
        own = own[own["several"]]
        repeats.repeated[split] += int(own["count"].sum())
        # In the order of their places where they are equally frequent, so that the same ones are named every time.
        most = own[np.lexsort((own["entry"], own["task"], -own["count"].astype(np.int64)))[:FIRST_NAMES]]
        kept = repeats.most_frequent.get(split, []) + [_sighting(row) for row in most]
        repeats.most_frequent[split] = sorted(kept, key=lambda one: (-one.count, one.task, one.entry))[:FIRST_NAMES]


def _count_across(rows: np.ndarray, repeats: Repeats) -> None:
    splits = np.unique(rows["split"]).tolist()
    for split, other in ((a, b) for a in splits for b in splits if a != b):
        own, others = rows[rows["split"] == split], rows[rows["split"] == other]
        _, mine, theirs = np.intersect1d(own["key"], others["key"], assume_unique=True, return_indices=True)
        own, others = own[mine], others[theirs]
        repeats.shared[split, other] += int(own["count"].sum())
        first = np.lexsort((own["entry"], own["task"]))[:FIRST_NAMES]
        kept = repeats.first_shared.get((split, other), [])
        kept = kept + [(_sighting(own[row]), _sighting(others[row])) for row in first]
        kept.sort(key=lambda pair: (pair[0].task, pair[0].entry))
        repeats.first_shared[split, other] = kept[:FIRST_NAMES]


def _sighting(row: np.void) -> Sighting:
    return Sighting(**{one.name: row[one.name].item() for one in dataclasses.fields(Sighting)})
