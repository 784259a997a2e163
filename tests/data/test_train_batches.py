"""The training stream depends on nothing but the position; evaluation leaves nothing usable out."""

import hashlib
import io
import itertools
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_data import encode, example

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data import train_batches as pipeline
from r2d2_jax.data.image.transforms import evaluation_image
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.data.train_batches import EvaluationSplit, image_id_hash, train_batches
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.examples import Example
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


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> RecordSource:
    """Eight records in one shard, of which 1, 2, 4 and 7 are unusable for four reasons."""
    folder = tmp_path_factory.mktemp("spoiled")
    records = [example(number) for number in range(8)]
    records[1] = example(1, image=encode((60, 60))[:-200])
    records[2] = Example(encode(), (), "image2")
    records[4] = example(4, "一只狗", " ")
    records[7] = example(7, image_id="")
    write_dataset(folder, {"train": records})
    return RecordSource(folder, "train")


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
    with pytest.raises(UserError, match="none of the 3 records of split 'train' is usable; prepare the dataset again"):
        EvaluationSplit(source, tokenizer, 16)


def test_missing_shard_is_told_by_a_worker(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_dataset(tmp_path, {"train": map(example, range(4))}, shards=2)
    source = RecordSource(tmp_path, "train")
    next(tmp_path.rglob("*00001-of-00002")).unlink()
    with pytest.raises(UserError, match="00001-of-00002 is missing"):
        batches(source, tokenizer, 2, workers=1)


def test_batch_that_cannot_be_split(source: RecordSource, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="batch_size 4 is not a multiple of the 3 processes"):
        batches(source, tokenizer, 1, process_count=3)


def test_program_that_never_closes_the_stream_ends(dataset: Path, vocabulary: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(f"""
if __name__ == "__main__":
    from r2d2_jax.config.data import DataConfig
    from r2d2_jax.data.mixture import Mixture
    from r2d2_jax.data.train_batches import train_batches
    from r2d2_jax.data.records import RecordSource
    from r2d2_jax.data.text.tokenizer import load_tokenizer
    stream = train_batches(Mixture([RecordSource({str(dataset)!r}, "train")]), load_tokenizer({str(vocabulary)!r}, 8),
                           DataConfig(directory="", workers=1), image_size=16, batch_size=2, seed=0, first_step=0)
    print(next(stream)["images"].shape)
""")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, script],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "(2, 16, 16, 3)"), done.stderr


def test_evaluation_split_has_everything(dataset: Path, tokenizer: Tokenizer) -> None:
    split = EvaluationSplit(RecordSource(dataset, "validation"), tokenizer, 16)
    assert split.num_images == 5
    assert sorted(split.image_ids) == [f"image{number}" for number in range(100, 105)]
    assert len(split.captions) == 10
    assert split.caption_image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert split.caption_image.dtype == np.int32
    assert split.captions[::2] == [name.removeprefix("image") + "只狗" for name in split.image_ids]
    np.testing.assert_array_equal(split.input_ids, tokenizer(split.captions)[0])
    np.testing.assert_array_equal(split.attention_mask, split.input_ids != 0)


def test_evaluation_images_are_padded_not_dropped(dataset: Path, tokenizer: Tokenizer) -> None:
    split = EvaluationSplit(RecordSource(dataset, "validation"), tokenizer, 16)
    whole = next(split.image_batches(5))
    by_two = list(split.image_batches(2))
    assert [batch.shape for batch in by_two] == [(2, 16, 16, 3)] * 3
    np.testing.assert_array_equal(np.concatenate(by_two)[:5], whole)
    assert (by_two[-1][1] == 0).all()


@pytest.mark.parametrize("images", [1, 3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_no_evaluation_image_is_dropped(images: int, processes: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """In batches of four, of which each process makes its own rows; together they have every image once."""
    write_dataset(tmp_path, {"test": map(example, range(images))}, shards=2)
    source = RecordSource(tmp_path, "test")
    split = EvaluationSplit(source, tokenizer, 16)
    own = [np.arange(4) // (4 // processes) == process for process in range(processes)]
    parts = [np.concatenate(list(split.image_batches(4, rows))) for rows in own]
    whole = np.sum(parts, axis=0)
    assert len(whole) == -(-images // 4) * 4
    for index in range(images):
        np.testing.assert_array_equal(whole[index], evaluation_image(source[index].image, 16))
    assert (whole[images:] == 0).all()
    assert (len(split.captions), split.num_images) == (2 * images, images)


def test_evaluation_decodes_only_the_rows_asked_for(
    dataset: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, decoded = EvaluationSplit(RecordSource(dataset, "validation"), tokenizer, 16), []
    whole = list(split.image_batches(4))
    original = pipeline.evaluation_image
    monkeypatch.setattr(pipeline, "evaluation_image", lambda *given: decoded.append(given) or original(*given))
    own = np.array([True, False, False, True])
    for batch, expected in zip(split.image_batches(4, own), whole, strict=True):
        np.testing.assert_array_equal(batch, np.where(own[:, None, None, None], expected, 0))
    assert len(decoded) == 3  # the first and the fourth of the first batch, the first of the second


def test_evaluation_of_the_first_images(dataset: Path, tokenizer: Tokenizer) -> None:
    source = RecordSource(dataset, "validation")
    split = EvaluationSplit(source, tokenizer, 16, max_images=2)
    assert split.image_ids == EvaluationSplit(source, tokenizer, 16).image_ids[:2]
    assert len(split.captions) == 4
    assert len(list(split.image_batches(4))) == 1


def test_evaluation_leaves_out_only_what_is_broken(
    spoiled: RecordSource, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        split = EvaluationSplit(spoiled, tokenizer, 16)
    assert split.image_ids == ["image0", "image2", "image3", "image5", "image6"]
    assert split.caption_image.tolist() == [0, 0, 2, 2, 3, 3, 4, 4]  # image2 has no caption: a candidate only
    assert len(split.problems) == 3
    assert "3 of the 8 records of split 'train' are unusable and left out" in caplog.text
    assert "train-00000-of-00001#7: it has no image_id" in caplog.text


def test_images_without_captions_stay_in_the_gallery(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    silent = [Example(encode(seed=number), (), f"silent{number}") for number in range(2)]
    write_dataset(tmp_path, {"test": [silent[0], example(1), silent[1], example(2, "红球")], "gallery": silent})
    with caplog.at_level(logging.INFO):
        split = EvaluationSplit(RecordSource(tmp_path, "test"), tokenizer, 16)
    assert split.image_ids == ["silent0", "image1", "silent1", "image2"]
    assert (split.num_images, split.captions) == (4, ["1只狗", "红球", "红球"])
    assert split.caption_image.tolist() == [1, 1, 3]
    assert split.problems == []
    assert "2 of the 4 images of split 'test' have no caption; text is compared with them all the same" in caplog.text
    with pytest.raises(UserError, match="none of the 2 images of split 'gallery' has a caption, so there is nothing"):
        EvaluationSplit(RecordSource(tmp_path, "gallery"), tokenizer, 16)
