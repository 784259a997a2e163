"""What occurs more than once in a corpus, within a split and across splits: an external sort of hashes.

Every part of a corpus writes a file of rows, one for each different thing in it, sorted by the thing's hash. Rows with
the same hash add up to one row, which does not depend on how many parts saw the thing. Files are merged 256 at a time
until 256 or fewer are left; these are counted together. To read several files at once, the range of all hashes is cut
into stretches of about two million rows; a stretch of every file is read, concatenated and added up. So memory depends
on these two numbers alone, and every round reads and writes all rows once.

Five million rows take 5 s of CPU and 290 MiB. DuckDB takes as long and 370 MiB, and Polars 760 MiB, growing with the
corpus, for a quarter of the time; filling an index in SQLite takes ten times as long.

Hashes have 64 bits: among a billion different captions, two have the same hash with a probability of about 3 %.
"""

import bisect
import dataclasses
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from r2d2_jax.preparation.checks.figures import FIRST_NAMES

_STRETCH_ROWS = 2**21
_FILES = 256  # read at once; our decision: one round of merging is enough for 65,000 parts
_ROW = np.dtype(
    [
        ("key", "<u8"),  # hash of the thing: a caption, an image's bytes, its identity, or both of these
        ("split", "<u2"),
        ("part", "<u4"),  # the part that saw it first, and the number of the entry in that part
        ("entry", "<u4"),
        ("image", "<u8"),  # hash that identifies the image it belongs to; of the first such image
        ("several", "?"),  # whether it belongs to several images; if so, the next two: where the second was seen
        ("other_part", "<u4"),
        ("other_entry", "<u4"),
        ("count", "<u4"),
    ]
)


def hash_of(content: bytes) -> int:
    """64 bits of blake2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class Sightings:
    """The things of one kind in one part of a corpus: captions, images, identities or records."""

    def __init__(self) -> None:
        self._keys, self._images, self._entries = array("Q"), array("Q"), array("I")

    def add(self, key: int, image: int, entry: int) -> None:
        """Notes the hash of a thing, the hash that identifies its image, and the number of the entry in the part."""
        self._keys.append(key)
        self._images.append(image)
        self._entries.append(entry)

    def write(self, path: Path, *, split: int, part: int) -> None:
        """Writes sorted rows; `split` and `part` are numbers."""
        rows = np.zeros(len(self._keys), _ROW)
        rows["key"], rows["image"], rows["entry"] = self._keys, self._images, self._entries
        rows["split"], rows["part"], rows["count"] = split, part, 1
        _added_up(rows).tofile(path)


@dataclass(frozen=True)
class Sighting:
    """The hash of a thing, the part and the entry where it was first seen, and how often it was seen.

    several: whether several images have it. other_part, other_entry: where the second image was seen.
    """

    key: int
    part: int
    entry: int
    count: int
    several: bool
    other_part: int
    other_entry: int


@dataclass
class Repeats:
    """The repeats among all sightings of one kind; splits are numbers.

    different: split -> number of different things.
    several: split -> number of different things that several images of the split have.
    repeated: split -> number of occurrences of these things.
    most_frequent: split -> the five most frequent of these things.
    shared: (split, other) -> number of occurrences in `split` of things that `other` has too.
    shared_by_others: (split, other) -> number of these whose thing belongs to different images.
    first_shared: (split, other) -> the first five shared things, as seen in `split` and in `other`.
    """

    different: Counter[int] = field(default_factory=Counter)
    several: Counter[int] = field(default_factory=Counter)
    repeated: Counter[int] = field(default_factory=Counter)
    most_frequent: dict[int, list[Sighting]] = field(default_factory=dict)
    shared: Counter[tuple[int, int]] = field(default_factory=Counter)
    shared_by_others: Counter[tuple[int, int]] = field(default_factory=Counter)
    first_shared: dict[tuple[int, int], list[tuple[Sighting, Sighting]]] = field(default_factory=dict)


def find_repeats(paths: Sequence[Path]) -> Repeats:
    """Compares the sightings of all parts.

    Args:
        paths: the files of `Sightings.write`, in the order of the parts. They may be removed, and merged files of the
            same size are written beside them.

    Raises:
        OSError: the disk is full.
    """
    while len(paths) > _FILES:
        paths = [_merged(paths[first : first + _FILES]) for first in range(0, len(paths), _FILES)]
    repeats = Repeats()
    for rows in _stretches(paths):
        _count_within(rows, repeats)
        _count_across(rows, repeats)
    return repeats


def _merged(paths: Sequence[Path]) -> Path:
    """Merges files into one and removes them."""
    merged = paths[0].with_name(f"{paths[0].name}+")
    with merged.open("wb") as file:
        for rows in _stretches(paths):
            file.write(rows.data)
    for path in paths:
        path.unlink()
    return merged


def _added_up(rows: np.ndarray) -> np.ndarray:
    """One row for each thing in each split, sorted by hash; it keeps the place of the thing's first row."""
    rows = rows[np.lexsort((rows["split"], rows["key"]))]  # stable, so the parts stay in order
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
    for other, own in (("other_part", "part"), ("other_entry", "entry")):
        summed[other][things] = np.where(another[witnesses], rows[own][witnesses], rows[other][witnesses])
    return summed


def _starts(rows: np.ndarray, *fields: str) -> np.ndarray:
    """The indices of the rows that differ in one of these fields from the row before."""
    changes = np.zeros(len(rows), bool)
    changes[:1] = True
    for name in fields:
        changes[1:] |= rows[name][1:] != rows[name][:-1]
    return np.flatnonzero(changes)


def _stretches(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The added-up rows of all files, in the order of their hashes, one stretch at a time."""
    sizes = [path.stat().st_size // _ROW.itemsize for path in paths]
    count = max(1, -(-sum(sizes) // _STRETCH_ROWS))
    limits = [index * 2**64 // count for index in range(1, count)]
    cuts = [_cuts(path, size, limits) for path, size in zip(paths, sizes, strict=True)]
    for stretch in range(count):
        yield _added_up(
            np.concatenate(
                [
                    np.zeros(0, _ROW),
                    *(
                        np.fromfile(path, _ROW, cut[stretch + 1] - cut[stretch], offset=cut[stretch] * _ROW.itemsize)
                        for path, cut in zip(paths, cuts, strict=True)
                        if cut[stretch + 1] > cut[stretch]
                    ),
                ]
            )
        )


def _cuts(path: Path, size: int, limits: list[int]) -> list[int]:
    if not limits or not size:
        return [0] * (len(limits) + 1) + [size]
    rows = np.memmap(path, _ROW, "r")  # the search touches a few pages only
    return [0, *(bisect.bisect_left(rows, limit, key=lambda row: int(row["key"])) for limit in limits), size]


def _count_within(rows: np.ndarray, repeats: Repeats) -> None:
    for split in np.unique(rows["split"]).tolist():
        own = rows[rows["split"] == split]
        repeats.different[split] += len(own)
        own = own[own["several"]]
        repeats.several[split] += len(own)
        repeats.repeated[split] += int(own["count"].sum())
        # Equally frequent things are sorted by their places, so that every run names the same ones.
        most = own[np.lexsort((own["entry"], own["part"], -own["count"].astype(np.int64)))[:FIRST_NAMES]]
        kept = repeats.most_frequent.get(split, []) + [_sighting(row) for row in most]
        repeats.most_frequent[split] = sorted(kept, key=lambda one: (-one.count, one.part, one.entry))[:FIRST_NAMES]


def _count_across(rows: np.ndarray, repeats: Repeats) -> None:
    splits = np.unique(rows["split"]).tolist()
    for split, other in ((a, b) for a in splits for b in splits if a != b):
        own, others = rows[rows["split"] == split], rows[rows["split"] == other]
        _, mine, theirs = np.intersect1d(own["key"], others["key"], assume_unique=True, return_indices=True)
        own, others = own[mine], others[theirs]
        repeats.shared[split, other] += int(own["count"].sum())
        differ = own["several"] | others["several"] | (own["image"] != others["image"])
        repeats.shared_by_others[split, other] += int(own["count"][differ].sum())
        first = np.lexsort((own["entry"], own["part"]))[:FIRST_NAMES]
        kept = repeats.first_shared.get((split, other), [])
        kept = kept + [(_sighting(own[row]), _sighting(others[row])) for row in first]
        kept.sort(key=lambda pair: (pair[0].part, pair[0].entry))
        repeats.first_shared[split, other] = kept[:FIRST_NAMES]


def _sighting(row: np.void) -> Sighting:
    return Sighting(**{one.name: row[one.name].item() for one in dataclasses.fields(Sighting)})
