"""Whole runs over damaged records and shards: what is counted, what is said, and when a run stops."""

import re
from pathlib import Path
from typing import Any

import pytest
from raw_data import serialized, write_raw
from small_data import encode
from small_images import png_header
from small_model import CHEAPEST, log_lines, small_config, write_small_dataset, write_vocabulary

from r2d2_jax.errors import UserError
from r2d2_jax.train.loop import RunOutcome, train

NO_EVALUATION: dict[str, Any] = {"data": {"validation_split": ""}}

JPEG, PNG = encode((200, 150)), encode(kind="PNG")
# Way of damage -> (the record, what is said of it).
DAMAGES = {
    "no image bytes": (serialized(image=b""), "not an image: 0 bytes in no known format"),
    "random bytes": (serialized(image=bytes(range(256)) * 8), "not an image: 2048 bytes in no known format"),
    "a page instead of an image": (serialized(image=b"<html>404</html>"), "not an image: 16 bytes in no known format"),
    "half a JPEG": (serialized(image=JPEG[: len(JPEG) // 2]), "the image cannot be decoded: .*truncated.*"),
    "the head of a JPEG": (serialized(image=JPEG[:20]), "not an image: 20 bytes.*|the image cannot be decoded: .*"),
    "a PNG of a wrong checksum": (
        serialized(image=png_header(40, 30, checksum=1) + PNG[33:]), "not an image: .*|the image cannot be decoded: .*"
    ),
    "a decompression bomb": (serialized(image=png_header(30_000, 30_000) + PNG[33:]), ".*pixels.*"),
    "no caption": (serialized(captions=[]), "it has no caption"),
    "an empty caption": (serialized(captions=["红球".encode(), b" "]), "it has an empty caption"),
    "a caption that is not UTF-8": (serialized(captions=b"\xba\xec\xc7\xf2"), "it is not what .*can't decode.*"),
    "an empty image_id": (serialized(image_id=b""), "it has no image_id"),
    "a missing feature": (serialized(image=None), "it has no feature image"),
    "no Example": (b"\xff" * 99, "it is not what launch/prepare_data.py writes: .*"),
}  # fmt: skip
NAMES = [f"train-0000{number // 650}-of-00002#{number % 650}" for number in range(50, 100 * len(DAMAGES), 100)]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every hundredth of the records of two shards is damaged, each in another way."""
    records = [serialized(number) for number in range(100 * len(DAMAGES))]
    records[50::100] = [record for record, _ in DAMAGES.values()]
    folder = tmp_path_factory.mktemp("damaged")
    write_raw(folder, {"train": [records[:650], records[650:]]})
    return write_vocabulary(folder)


def run(folder: Path, workdir: Path, max_broken_share: float) -> RunOutcome:
    data = {"directory": str(folder), "max_broken_share": max_broken_share}
    settings = {"batch_size": 52, "epochs": 1.0, "log_every": 25}
    return train(small_config(CHEAPEST, NO_EVALUATION, {"data": data, "train": settings}), workdir)


def assert_all_are_named(lines: list[str]) -> None:
    """Each damaged record by its place, with its reason."""
    for name, (way, (_, reason)) in zip(NAMES, DAMAGES.items(), strict=True):
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert re.fullmatch(reason, line.removeprefix(f"{name}: ")), (way, line)


def test_one_per_cent_damaged_in_every_way(damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcome = run(damaged, tmp_path, 0.01)
    assert (outcome.step, outcome.finished, outcome.unusable) == (25, True, len(DAMAGES))
    assert log_lines(tmp_path)[-2]["broken_records"] == len(DAMAGES)
    said = "unusable record, the next one takes its place: "
    assert_all_are_named([line.removeprefix(said) for line in caplog.messages if line.startswith(said)])


def test_more_than_the_limit_stops_with_the_names(damaged: Path, tmp_path: Path) -> None:
    """1 per cent where half as much is tolerated."""
    with pytest.raises(UserError) as stopped:
        run(damaged, tmp_path, 0.005)
    head, *names = str(stopped.value).splitlines()
    message = r"1[1-3] of the \d+ training records read are unusable, more than data.max_broken_share = 0.005 allows; "
    assert re.match(message, head)
    assert len(set(names)) == len(names) == 10
    assert {name.split(":")[0] for name in names} < set(NAMES)


def test_a_shard_cut_short_stops_the_run(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "data", train=32, shards=2)
    shard = next(folder.rglob("*train*00001-of-00002"))
    shard.write_bytes(shard.read_bytes()[:-100])
    config = small_config(CHEAPEST, NO_EVALUATION, {"data": {"directory": str(folder)}})
    with pytest.raises(UserError, match=f"shard {shard} cannot be opened .* expected a complete ArrayRecord file"):
        train(config, tmp_path / "run")
