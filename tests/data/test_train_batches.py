"""The training stream depends on nothing but the position."""

import dataclasses
import hashlib
import io
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_data import example

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.data.train_batches import image_id_hash, train_batches
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.writer import write_dataset

Batch = dict[str, np.ndarray]


def batches(
    source: RecordSource,
    tokenizer: Tokenizer,
    count: int,
    *,
    workers: int = 0,
    augmentation: str = "crop_and_flip",
    **settings: Any,
) -> list[Batch]:
    data = DataConfig(directory="", workers=workers, augmentation=augmentation)
    arguments = {"image_size": 16, "batch_size": 4, "seed": 1, "first_step": 0} | settings
    stream = train_batches(Mixture([source]), tokenizer, data, **arguments)
    taken = [{key: np.array(value) for key, value in batch.items()} for batch in itertools.islice(stream, count)]
    stream.close()
    return taken


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def ids(taken: list[Batch]) -> list[tuple[int, int]]:
    return [tuple(row) for batch in taken for row in batch["image_id"].tolist()]


def test_shapes_and_types(source: RecordSource, tokenizer: Tokenizer) -> None:
    (batch,) = batches(source, tokenizer, 1)
    assert {key: (value.shape, value.dtype.kind) for key, value in batch.items()} == {
        "images": ((4, 16, 16, 3), "u"),
        "input_ids": ((4, 8), "i"),
        "attention_mask": ((4, 8), "b"),
        "image_id": ((4, 2), "u"),
        "problems": ((4,), "U"),
    }
    assert (batch["images"].dtype, batch["input_ids"].dtype, batch["image_id"].dtype) == (np.uint8, np.int32, np.uint32)
    assert (batch["problems"] == "").all()


def test_image_id_hash() -> None:
    expected = int.from_bytes(hashlib.blake2b("图1".encode(), digest_size=8).digest(), "little")
    low, high = image_id_hash("图1").tolist()
    assert low + (high << 32) == expected


def test_workers_change_nothing(spoiled: RecordSource, tokenizer: Tokenizer) -> None:
    assert_same(batches(spoiled, tokenizer, 9, workers=2), batches(spoiled, tokenizer, 9))


def test_starting_later_continues_exactly(source: RecordSource, tokenizer: Tokenizer) -> None:
    assert_same(batches(source, tokenizer, 3, first_step=7), batches(source, tokenizer, 10)[7:])


def test_processes_share_out_each_batch(source: RecordSource, tokenizer: Tokenizer) -> None:
    parts = [batches(source, tokenizer, 7, process_index=p, process_count=2, first_step=2) for p in (0, 1)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    assert_same(joined, batches(source, tokenizer, 9)[2:])


def test_every_epoch_is_another_permutation(source: RecordSource, tokenizer: Tokenizer) -> None:
    taken = ids(batches(source, tokenizer, 33, batch_size=2))
    epochs = [taken[:22], taken[22:44], taken[44:]]
    assert all(len(set(epoch)) == 22 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_seed_changes_the_order_and_each_visit_the_crop(source: RecordSource, tokenizer: Tokenizer) -> None:
    first, second = (batches(source, tokenizer, 11, batch_size=4, seed=seed) for seed in (1, 2))
    assert ids(first) != ids(second)
    images = np.concatenate([batch["images"] for batch in first])
    visits = [dict(zip(ids(first)[visit], images[visit], strict=True)) for visit in (np.s_[:22], np.s_[22:])]
    assert all((visits[0][key] != visits[1][key]).any() for key in visits[0])


def test_random_operations_change_some_images_alone(source: RecordSource, tokenizer: Tokenizer) -> None:
    plain = batches(source, tokenizer, 20)
    augmented = batches(source, tokenizer, 20, augmentation="random_augment")
    changed = 0
    for before, after in zip(plain, augmented, strict=True):
        changed += (before["images"] != after["images"]).any((1, 2, 3)).sum()
        for key in ("input_ids", "attention_mask", "image_id"):
            np.testing.assert_array_equal(before[key], after[key])
    assert 20 < changed < 70  # of 80: two draws of ten operations, of which seven do something, half of the time


def test_all_captions_are_drawn(source: RecordSource, tokenizer: Tokenizer) -> None:
    input_ids = np.concatenate([batch["input_ids"] for batch in batches(source, tokenizer, 50)])
    assert 60 < (input_ids[:, 1] == tokenizer(["红"])[0][0, 1]).sum() < 140


def test_direction_words_are_never_mirrored(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ramp = np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], (50, 50, 3))
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    write_dataset(tmp_path, {"train": [example(0, "狗在左", "红球", image=file.getvalue())]})
    source = RecordSource(tmp_path, "train")
    rows = batches(source, tokenizer, 20)
    left = np.concatenate([batch["input_ids"] for batch in rows])[:, 1] == tokenizer(["狗"])[0][0, 1]
    images = np.concatenate([batch["images"] for batch in rows]).astype(int)
    mirrored = images[:, 8, 0, 0] > images[:, 8, -1, 0]
    assert left.any()
    assert not mirrored[left].any()
    assert mirrored[~left].any()


def test_broken_records_give_their_place_to_the_next(spoiled: RecordSource, tokenizer: Tokenizer) -> None:
    taken = batches(spoiled, tokenizer, 4, batch_size=2)
    image = {number: tuple(image_id_hash(f"image{number}").tolist()) for number in range(8)}
    assert Counter(ids(taken)) == Counter(image[number] for number in (0, 3, 3, 3, 5, 5, 6, 0))
    lines = Counter(line for batch in taken for row in batch["problems"] if row for line in row.split("\n"))
    reasons = {
        1: "the image cannot be decoded",
        2: "it has no caption",
        4: "it has an empty caption",
        7: "it has no image_id",
    }
    assert len(lines) == 4
    for number, reason in reasons.items():
        (line,) = [line for line in lines if line.startswith(f"train-00000-of-00001#{number}: {reason}")]
        assert lines[line] == (2 if number == 2 else 1)  # record 2 is met in its own place and after record 1


def test_nothing_usable(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_dataset(tmp_path, {"train": [example(number, image_id="") for number in range(3)]})
    source = RecordSource(tmp_path, "train")
    with pytest.raises(UserError, match=r"3 records one after the other are unusable.*(\n.*it has no image_id){3}"):
        batches(source, tokenizer, 1)


def test_missing_shard_is_told_by_a_worker(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_dataset(tmp_path, {"train": map(example, range(4))}, shards=2)
    source = RecordSource(tmp_path, "train")
    next(tmp_path.rglob("*00001-of-00002")).unlink()
    with pytest.raises(UserError, match="00001-of-00002 is missing"):
        batches(source, tokenizer, 2, workers=1)


def test_batch_that_cannot_be_split(source: RecordSource, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="batch_size 4 is not a multiple of the 3 processes"):
        batches(source, tokenizer, 1, process_count=3)


def test_program_that_never_closes_the_stream_ends(reading_process: dict[str, Any]) -> None:
    assert reading_process["shape"] == [2, 16, 16, 3]


def test_settings_of_other_libraries_are_left_alone(reading_process: dict[str, Any]) -> None:
    """OpenCV's threads and Pillow's limit; and flags that the program's author may still want to parse."""
    assert reading_process["settings_kept"]
    assert not reading_process["flags_parsed"]


def test_labelled_batches_say_which_pairs_match(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [dataclasses.replace(example(n, f"{n}只狗"), label=n % 2) for n in range(8)]
    pairs[3] = dataclasses.replace(pairs[3], captions=("一", "二"))
    write_dataset(tmp_path, {"train": pairs}, class_names=("no match", "match"))
    (batch,) = batches(RecordSource(tmp_path, "train"), tokenizer, 1, batch_size=8, labelled=True)
    numbers = {tuple(image_id_hash(f"image{n}").tolist()): n for n in range(8)}
    shown = [numbers[tuple(row)] for row in batch["image_id"].tolist()]
    assert batch["label"].tolist() == [n % 2 for n in shown]
    assert batch["label"].dtype == np.int32
    assert 3 not in shown
    assert "#3: it has a label and 2 texts; expected one" in "".join(batch["problems"])
    (unlabelled,) = batches(RecordSource(tmp_path, "train"), tokenizer, 1, batch_size=8)
    assert "label" not in unlabelled
