"""Repeats are found on disk as they would be in memory."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2d2_jax.preparation.checks import repeats
from r2d2_jax.preparation.checks.repeats import Repeats, Sightings, find_repeats, hash_of

Seen = tuple[int, int, int, int, int]  # split, part, entry, hash of the thing, hash of its image


def random_seen(rng: np.random.Generator) -> list[Seen]:
    """Three parts of split 0, two of split 1; things and images recur."""
    return [
        (int(part > 2), part, entry, hash_of(b"%d" % rng.integers(60)), hash_of(b"i%d" % rng.integers(40)))
        for part in range(5)
        for entry in range(30)
    ]


def written(folder: Path, seen: list[Seen]) -> list[Path]:
    paths = []
    for part in sorted({part for _, part, *_ in seen}):
        sightings = Sightings()
        split = 0
        for split_here, part_here, entry, key, image in seen:
            if part_here == part:
                split = split_here
                sightings.add(key, image, entry)
        paths.append(folder / f"{part}")
        sightings.write(paths[-1], split=split, part=part)
    return paths


def in_memory(seen: list[Seen]) -> Repeats:
    """The definitions, with everything in memory."""
    expected, of = Repeats(), defaultdict(list)
    for one in seen:
        of[one[0], one[3]].append(one)
    for (split, _), all_seen in of.items():
        expected.different[split] += 1
        expected.several[split] += len({image for *_, image in all_seen}) > 1
        expected.repeated[split] += len(all_seen) * (len({image for *_, image in all_seen}) > 1)
    for split, other in ((0, 1), (1, 0)):
        both = [one for one in seen if one[0] == split and (other, one[3]) in of]
        expected.shared[split, other] = len(both)
        expected.shared_by_others[split, other] = sum(
            len({image for number in (0, 1) for *_, image in of[number, key]}) > 1 for *_, key, _ in both
        )
    return expected


@pytest.mark.parametrize("files", [2, 3, 256])  # three rounds of merging, one, none
@pytest.mark.parametrize("stretch_rows", [7, 2**21])
def test_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch_rows: int, files: int) -> None:
    monkeypatch.setattr(repeats, "_STRETCH_ROWS", stretch_rows)
    monkeypatch.setattr(repeats, "_FILES", files)
    seen = random_seen(np.random.default_rng(0))
    found, expected = find_repeats(written(tmp_path, seen)), in_memory(seen)
    assert found.different == expected.different
    assert found.several == expected.several
    assert found.repeated == expected.repeated
    assert found.shared == expected.shared
    assert found.shared_by_others == expected.shared_by_others


@pytest.mark.parametrize("stretch_rows", [10, 2**21])
def test_merging_in_rounds_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch_rows: int) -> None:
    monkeypatch.setattr(repeats, "_STRETCH_ROWS", stretch_rows)
    seen, found = random_seen(np.random.default_rng(1)), []
    for files in (2, 256):
        monkeypatch.setattr(repeats, "_FILES", files)
        (tmp_path / f"{files}").mkdir()
        found.append(find_repeats(written(tmp_path / f"{files}", seen)))
    assert found[0] == found[1]


def test_few_files_are_opened_however_many_parts_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the parts, as large as before, are read about four times as often, not sixteen times."""
    monkeypatch.setattr(repeats, "_STRETCH_ROWS", 1024)
    monkeypatch.setattr(repeats, "_FILES", 8)
    opened, reads, fromfile = [], [], np.fromfile

    def counted(path: Path, *rest: Any, **named: Any) -> np.ndarray:
        opened.append(path)
        return fromfile(path, *rest, **named)

    monkeypatch.setattr(np, "fromfile", counted)
    for parts in (64, 256):
        paths = [tmp_path / f"{part}-of-{parts}" for part in range(parts)]
        for part, path in enumerate(paths):
            sightings = Sightings()
            for entry in range(256):
                sightings.add(hash_of(b"%d %d" % (part, entry)), part, entry)
            sightings.write(path, split=0, part=part)
        opened.clear()
        assert find_repeats(paths).different == {0: parts * 256}
        reads.append(len(opened))
    assert reads[1] < 6 * reads[0]


def test_the_most_frequent_are_named_by_their_first_two_images(tmp_path: Path) -> None:
    seen = [
        (0, 0, 0, 7, 1),
        (0, 0, 1, 7, 1),
        (0, 1, 0, 7, 1),
        (0, 1, 4, 7, 2),
        (0, 2, 0, 7, 3),  # five times, of 3
        (0, 0, 2, 8, 1),
        (0, 2, 1, 8, 2),
        (0, 2, 2, 2**64 - 1, 1),
        (0, 2, 3, 2**64 - 1, 2),  # twice, of two
        (0, 1, 1, 9, 1),
        (0, 1, 2, 9, 1),
        (0, 1, 3, 9, 1),
    ]  # three times, of one image
    most = find_repeats(written(tmp_path, seen)).most_frequent[0]
    assert [(one.key, one.count, (one.part, one.entry), (one.other_part, one.other_entry)) for one in most] == [
        (7, 5, (0, 0), (1, 4)),
        (8, 2, (0, 2), (2, 1)),
        (2**64 - 1, 2, (2, 2), (2, 3)),
    ]


def test_what_is_shared_is_named_where_it_is_first(tmp_path: Path) -> None:
    seen = [(0, 0, 5, 7, 1), (0, 0, 6, 8, 1), (0, 0, 7, 9, 1), (1, 1, 0, 9, 4), (1, 1, 1, 7, 4), (1, 1, 2, 9, 4)]
    found = find_repeats(written(tmp_path, seen))
    pairs = found.first_shared[1, 0]
    assert [((a.part, a.entry), (b.part, b.entry)) for a, b in pairs] == [((1, 0), (0, 7)), ((1, 1), (0, 5))]
    assert found.shared == Counter({(1, 0): 3, (0, 1): 2})


def test_few_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_STRETCH_ROWS", 3)
    keys = [hash_of(b"%d" % number) for number in range(20)]
    seen = [(split, split, entry, key, entry + split) for split in (0, 1) for entry, key in enumerate(keys * 2)]
    found = find_repeats(written(tmp_path, seen))
    assert [one.entry for one in found.most_frequent[0]] == [0, 1, 2, 3, 4]
    assert [one.entry for one, _ in found.first_shared[1, 0]] == [0, 1, 2, 3, 4]


def test_nothing_at_all(tmp_path: Path) -> None:
    Sightings().write(tmp_path / "0", split=0, part=0)
    assert find_repeats([tmp_path / "0"]) == Repeats()
    assert find_repeats([]) == Repeats()
