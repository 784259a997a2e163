"""Corpora mixed in fixed shares: by the numbers, in the stream, and at places far along it."""

import dataclasses
import itertools
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from raw_data import serialized, write_raw
from small_data import example

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data import records
from r2d2_jax.data.mixture import CorpusOrder, Mixture, evenly_spread
from r2d2_jax.data.records import MAX_OPEN_SHARDS, RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.data.train_batches import image_id_hash, train_batches
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.writer import write_dataset

SIZES = (7, 13, 4)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[RecordSource]:
    """Three corpora of 7, 13 and 4 records, whose images all have the same names image0, image1, ..."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second", "third")]
    for folder, size in zip(folders, SIZES, strict=True):
        write_raw(folder, {"train": [map(serialized, range(size))]})
    return [RecordSource(folder, "train", corpus=folder.name) for folder in folders]


def taken(mixture: Mixture, count: int, start: int = 0) -> list[int]:
    """The numbers of so many records of the stream."""
    order = mixture.order((11, 22, 33)[: len(mixture.sources)])
    return [order[place] for place in range(start, start + count)]


def corpus_of(number: int) -> int:
    return int(np.searchsorted(np.cumsum(SIZES), number, side="right"))


@pytest.mark.parametrize("weights", [(), (7, 13, 4), (0.7, 1.3, 0.4), (1.75, 3.25, 1.0)])
def test_weights_in_proportion_to_the_sizes_give_every_record_once_an_epoch(
    sources: list[RecordSource], weights: Sequence[float]
) -> None:
    mixture = Mixture(sources, weights)
    assert (len(mixture), mixture.records, mixture.rows) == (24, SIZES, SIZES)
    epochs = [taken(mixture, 24, epoch * 24) for epoch in range(4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(
    ("weights", "rows"),
    [((1, 1, 1), (8, 8, 8)), ((2.0, 1.0, 1.0), (12, 6, 6)), ((1, 1, 5), (4, 3, 17)), ((1, 98, 1.2), None)],
)
def test_each_corpus_gives_its_share(
    sources: list[RecordSource], weights: tuple[float, ...], rows: tuple[int, ...] | None
) -> None:
    """4 and 3 of 24 for 1/7 = 3.43 rows: rounded so that all 24 are given. What is too rare is refused."""
    if rows is None:
        weights = (0.001, 98, 1.2)
        with pytest.raises(UserError, match=r"the weight of corpus .*first.* so small that an epoch of 24 rows has no"):
            Mixture(sources, weights)
        return
    mixture = Mixture(sources, weights)
    assert mixture.rows == rows
    for epoch in range(3):
        given = Counter(map(corpus_of, taken(mixture, 24, 24 * epoch)))
        assert tuple(given[corpus] for corpus in range(3)) == rows


def test_each_corpus_goes_through_its_own_permutations(sources: list[RecordSource]) -> None:
    """Whatever its weight: of any corpus, every so many rows as it has records are all of them."""
    stream = taken(Mixture(sources, (1, 1, 5)), 24 * 13)
    start = 0
    for corpus, size in enumerate(SIZES):
        own = [number for number in stream if corpus_of(number) == corpus]
        rounds = [own[at : at + size] for at in range(0, len(own) - size + 1, size)]
        assert len(rounds) > 2
        assert all(sorted(part) == list(range(start, start + size)) for part in rounds)
        assert len({tuple(part) for part in rounds}) > 1
        start += size


# --- the rule by which they are spread ------------------------------------------------------------------------------

MIXTURES = [(7, 13, 4), (1, 1), (1, 999), (999, 1), (5, 5, 5, 1), (1,), (250, 23, 1, 40)]


@pytest.mark.parametrize("rows", MIXTURES)
def test_rows_are_spread_evenly(rows: tuple[int, ...]) -> None:
    """Every corpus's own rows come in order; the count up to any place is near the share, and exact after an epoch."""
    total = sum(rows)
    given = [0] * len(rows)
    for place in range(3 * total):
        corpus, own = evenly_spread(place, rows)
        assert own == given[corpus]
        given[corpus] += 1
        ideal = np.array(rows) * (place + 1) / total
        assert np.abs(given - ideal).max() < len(rows)
        if (place + 1) % total == 0:
            assert given == ideal.tolist()


@pytest.mark.parametrize("rows", MIXTURES)
def test_far_places_are_those_of_the_first_epoch(rows: tuple[int, ...]) -> None:
    total = sum(rows)
    for place in (10**9, 10**9 + 1, 10**9 + 17, 2 * 10**12 + 3):
        epoch, within = divmod(place, total)
        corpus, own = evenly_spread(within, rows)
        assert evenly_spread(place, rows) == (corpus, epoch * rows[corpus] + own)


def test_a_far_place_of_the_stream(sources: list[RecordSource]) -> None:
    """Around element 10**9: the next 24 from the start of an epoch on are every record once."""
    start = 10**9 - 10**9 % 24
    assert sorted(taken(Mixture(sources), 24, start)) == list(range(24))


def test_a_run_opens_each_shard_once_an_epoch(tmp_path: Path) -> None:
    """Two corpora of 200 and 150 shards, where 128 may be open: no shard is opened twice for its ten records."""
    for name, copies in (("first", 200), ("second", 150)):
        write_raw(tmp_path / name, {"train": [map(serialized, range(10))]}, copies=copies)
    mixture = Mixture([RecordSource(tmp_path / name, "train") for name in ("first", "second")])
    before = records._opened.cache_info().misses
    numbers = taken(mixture, len(mixture))
    assert sorted(numbers) == list(range(3500))
    for number in numbers:
        assert mixture[number].image
    assert records._opened.cache_info().misses - before == 350
    assert records._opened.cache_info().currsize <= MAX_OPEN_SHARDS


# --- what a batch has of it -----------------------------------------------------------------------------------------


def stream(mixture: Mixture, tokenizer: Tokenizer, count: int, **settings: Any) -> list[dict[str, np.ndarray]]:
    data = DataConfig(directory="", workers=settings.pop("workers", 0))
    arguments = {"image_size": 8, "batch_size": 6, "seed": 1, "first_step": 0} | settings
    batches = train_batches(mixture, tokenizer, data, **arguments)
    rows = [{key: np.array(value) for key, value in batch.items()} for batch in itertools.islice(batches, count)]
    batches.close()
    return rows


def assert_same(left: list[dict[str, np.ndarray]], right: list[dict[str, np.ndarray]]) -> None:
    for a, b in zip(left, right, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_position_workers_and_processes_of_a_mixture(sources: list[RecordSource], tokenizer: Tokenizer) -> None:
    mixture = Mixture(sources, (3, 2, 1))
    whole = stream(mixture, tokenizer, 9)
    assert_same(stream(mixture, tokenizer, 4, first_step=5), whole[5:])
    assert_same(stream(mixture, tokenizer, 9, workers=1), whole)
    parts = [stream(mixture, tokenizer, 9, process_index=number, process_count=3) for number in range(3)]
    joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts)]  # noqa: B905
    assert_same(joined, whole)


def test_equal_names_in_two_corpora_are_two_images(sources: list[RecordSource], tokenizer: Tokenizer) -> None:
    """24 records of an epoch are 24 images, though their names are 13."""
    batches = stream(Mixture(sources), tokenizer, 4)
    ids = {tuple(row) for batch in batches for row in batch["image_id"].tolist()}
    names = [f"{corpus}:image{number}" for corpus, size in enumerate(SIZES) for number in range(size)]
    assert ids == {tuple(image_id_hash(name).tolist()) for name in names}
    assert len(ids) == 24


def test_equal_text_ids_in_two_corpora_are_two_texts(
    sources: list[RecordSource], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """One corpus has no ids, and a text of another has none: both are zeros. The caption drawn brings its own id."""
    for corpus in ("one", "other"):
        captions = ("0只狗", "1只狗", "2只狗")
        examples = [dataclasses.replace(example(n, *captions), text_ids=("", f"q{n % 2}", "q2")) for n in range(9)]
        write_dataset(tmp_path / corpus, {"train": examples}, text_ids=True)
    mixture = Mixture([sources[0], *(RecordSource(tmp_path / corpus, "train") for corpus in ("one", "other"))])
    assert mixture.has_text_ids
    assert not Mixture(sources).has_text_ids
    batches = stream(mixture, tokenizer, 40, batch_size=5, text_ids=True)
    rows = {(int(place), *ids) for batch in batches
            for place, ids in zip(batch["input_ids"][:, 1], batch["text_id"].tolist(), strict=True)}  # fmt: skip
    first = [int(tokenizer([f"{n}"])[0][0, 1]) for n in range(3)]
    named = [(first[1], "q0"), (first[1], "q1"), (first[2], "q2")]
    expected = {(token, *image_id_hash(f"{corpus}:{name}").tolist()) for corpus in (1, 2) for token, name in named}
    assert {row for row in rows if row[1:] != (0, 0)} == expected
    assert first[0] in {row[0] for row in rows if row[1:] == (0, 0)}
    assert all(batch["text_id"].dtype == np.uint32 for batch in batches)
    plain = stream(mixture, tokenizer, 40, batch_size=5)
    assert_same(plain, batches)
    assert "text_id" not in plain[0]


def test_a_mixture_of_one_is_that_corpus(sources: list[RecordSource], tokenizer: Tokenizer) -> None:
    """Its order is Grain's shuffle, and its images have the names that they have alone."""
    alone = Mixture(sources[:1], (5.0,))
    assert taken(alone, 21) == list(grain.MapDataset.range(7).shuffle(seed=11).repeat(3))
    batches = stream(alone, tokenizer, 7, batch_size=1)
    ids = [tuple(batch["image_id"][0].tolist()) for batch in batches]
    assert sorted(ids) == sorted(tuple(image_id_hash(f"image{number}").tolist()) for number in range(7))


def test_a_broken_record_is_replaced_and_named_within_its_corpus(
    sources: list[RecordSource], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """The last record of the middle corpus gives its place to the first one of the same corpus."""
    write_raw(tmp_path, {"train": [[serialized(0), serialized(1), serialized(2, image=b"")]]})
    broken = RecordSource(tmp_path, "train", corpus="data/broken")
    batches = stream(Mixture([sources[0], broken, sources[2]]), tokenizer, 7, batch_size=2)
    lines = [line for batch in batches for line in batch["problems"] if line]
    assert lines == ["data/broken:train-00000-of-00001#2: not an image: 0 bytes in no known format"]
    counts = Counter(tuple(row) for batch in batches for row in batch["image_id"].tolist())
    twice = [row for row, times in counts.items() if times == 2]
    assert twice == [tuple(image_id_hash("1:image0").tolist())]
    assert len(counts) == 13


# --- the order of one corpus in many shards -----------------------------------------------------------------------

LENGTHS = (5, 1, 9, 3, 7, 2, 0, 4)
RECORDS = sum(LENGTHS)


def epoch(order: CorpusOrder, number: int) -> list[int]:
    return [order[row] for row in range(number * RECORDS, (number + 1) * RECORDS)]


@pytest.mark.parametrize("window_shards", [1, 2, 3, 8, 100])
def test_an_epoch_has_every_record_once(window_shards: int) -> None:
    order = CorpusOrder(LENGTHS, seed=3, window_shards=window_shards, rows=10_000)
    epochs = [epoch(order, number) for number in (0, 1, 2, 50)]
    assert all(sorted(rows) == list(range(RECORDS)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4


def test_rows_are_whole_epochs() -> None:
    assert len(CorpusOrder(LENGTHS, 0, 2, rows=10 * RECORDS + 5)) == 10 * RECORDS


def test_it_depends_on_the_seed_alone() -> None:
    order = CorpusOrder(LENGTHS, seed=3, window_shards=2, rows=1000)
    again = pickle.loads(pickle.dumps(order))
    assert [again[row] for row in reversed(range(100))] == [order[row] for row in reversed(range(100))]
    assert epoch(CorpusOrder(LENGTHS, seed=4, window_shards=2, rows=1000), 0) != epoch(order, 0)


def test_shards_of_a_window_are_read_together_and_windows_change() -> None:
    order = CorpusOrder([10] * 40, seed=0, window_shards=4, rows=10_000)
    windows = []
    for number in range(2):
        shards = np.array([order[row] // 10 for row in range(number * 400, (number + 1) * 400)]).reshape(10, 40)
        found = [frozenset(window.tolist()) for window in shards]
        assert all(len(window) == 4 for window in found)
        windows.append(set(found))
    assert windows[0] != windows[1]


def test_a_window_is_mixed_as_a_whole() -> None:
    """In 120 epochs of three records in two shards, each of the six orders comes about equally often."""
    order = CorpusOrder([2, 1], seed=0, window_shards=2, rows=10_000)
    # Two records tell the order of three; each takes 15 ms, because Grain's shuffle is slow for so few.
    found = [(order[3 * number], order[3 * number + 1]) for number in range(120)]
    counts = [found.count(begin) for begin in itertools.permutations(range(3), 2)]
    assert sum(counts) == 120
    assert min(counts) > 9
