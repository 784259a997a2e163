"""Every error and warning is said once, when its limit is passed and not before."""

from dataclasses import replace
from typing import Any

import pytest

from r2d2_jax.preparation.checks.findings import findings
from r2d2_jax.preparation.checks.parts import UNUSABLE_KINDS
from r2d2_jax.preparation.checks.report import (
    CaptionReport,
    CheckSettings,
    ImageReport,
    Limits,
    Report,
    ShardFigures,
    SharedReport,
    SplitReport,
    TokenReport,
)

SETTINGS = CheckSettings("vocab.txt", 64, 224, 4, 0.01, 0.05)


def split(
    *,
    images: dict[str, Any] | None = None,
    captions: dict[str, Any] | None = None,
    tokens: dict[str, Any] | None = None,
    unusable: dict[str, int] | None = None,
    **changes: Any,
) -> SplitReport:
    """A split of 1,000 sound images and 2,000 captions in eight shards, with changes."""
    some_tokens = TokenReport(None, 0, 0.0, 0, 0.0, {})
    some_captions = CaptionReport(2000, None, None, 2000, 0, 0, 0.0, {}, {}, replace(some_tokens, **tokens or {}))
    some_images = ImageReport(1000, None, None, 0, None, {}, {}, {}, {}, 0, 0, [], 0, [], 0, [])
    sound = SplitReport(
        1000,
        0,
        1000,
        1000,
        dict.fromkeys(UNUSABLE_KINDS, 0) | (unusable or {}),
        {},
        {},
        replace(some_images, **images or {}),
        replace(some_captions, **captions or {}),
        None,
        ShardFigures(8, Limits(125, 125), Limits(2, 2)),
    )
    return replace(sound, **changes)


def found(
    settings: CheckSettings = SETTINGS, shared: list[SharedReport] | None = None, lines: int = 0, **splits: SplitReport
) -> tuple[list[str], list[str]]:
    return findings(Report("a corpus", settings, splits or {"train": split()}, shared or [], lines, []))


def test_a_sound_corpus() -> None:
    assert found(train=split(), validation=split()) == ([], [])


@pytest.mark.parametrize(
    ("train", "error"),
    [
        (split(entries=5, usable=0, unusable={"missing": 5}), "train: none of the 5 entries is usable"),
        (split(captioned=0), "train: none of the 1,000 usable entries has a caption to learn from"),
        (
            split(usable=980, unusable={"missing": 9, "truncated": 2}, lines=1),
            "train: 12 of the 1,001 entries (1.20%) are unusable: 9 missing image, 2 truncated image, 1 unusable "
            "annotation, more than --max_broken_share=0.01 allows",
        ),
        (
            split(damaged_shards={"a-00001": 3, "a-00007": 1}),
            "train: 2 of the shards are missing or damaged, which training stops at: a-00001, a-00007",
        ),
        (
            split(tokens={"unknown": 900, "unknown_share": 0.0712}),
            "train: 7.12% of the tokens are [UNK], more than --max_unknown_share=0.05 allows; the vocabulary may be "
            "the wrong one",
        ),
    ],
)
def test_errors_of_a_split(train: SplitReport, error: str) -> None:
    errors, _ = found(train=train)
    assert error in errors


def test_no_entry_at_all() -> None:
    nothing = "there is no entry at all: every annotation is unusable, or there is none"
    assert nothing in findings(Report("a corpus", SETTINGS, {}, [], 0, []))[0]
    assert nothing in found(train=split(entries=0, usable=0, captioned=0, lines=9))[0]


def test_captions_are_needed_in_train_only() -> None:
    assert found(train=split(), test=split(captioned=0)) == ([], [])


def test_lines_without_a_split() -> None:
    assert found(lines=10) == ([], [])
    assert found(lines=11)[0] == [
        "11 of the 1,011 annotations are unusable lines that name no split, more than --max_broken_share=0.01 allows"
    ]


def test_images_of_another_split_in_train() -> None:
    pair = SharedReport("test", "train", 0, 2, 2, 0, [])
    assert found(train=split(), test=split(), shared=[pair]) == (
        ["test: 2 images are also in train by their bytes: what is measured on test would be learned by heart"],
        [],
    )


def test_images_of_test_in_validation_are_a_warning() -> None:
    pair = SharedReport("test", "validation", 0, 2, 1, 0, [])
    assert found(train=split(), validation=split(), test=split(), shared=[pair]) == (
        [],
        ["test: 2 images are also in validation by their bytes"],
    )


@pytest.mark.parametrize("other", ["train", "validation"])
def test_an_image_id_of_different_images_is_a_warning(other: str) -> None:
    """Each split may number its images from 0."""
    pair = SharedReport("test", other, 0, 0, 6, 5, [])
    assert found(train=split(), validation=split(), test=split(), shared=[pair]) == (
        [],
        [
            f"test: 5 images have the image_id of an image of {other} with other bytes; image_ids should differ "
            "across splits"
        ],
    )


def test_captions_in_two_splits() -> None:
    assert found(train=split(), test=split(), shared=[SharedReport("test", "train", 30, 0, 0, 0, [])]) == (
        [],
        ["test: 30 of the 2,000 captions (1.50%) also occur in train"],
    )


def test_no_vocabulary() -> None:
    assert found(replace(SETTINGS, vocabulary=None)) == (
        [],
        ["there is no vocabulary, so tokens are not measured; set --vocabulary to a vocab.txt"],
    )


def test_no_train_split() -> None:
    assert found(test=split(), dev=split()) == ([], ["there is no split train; there are test, dev"])


@pytest.mark.parametrize(
    ("train", "sound", "warning"),
    [
        (
            split(images={"damaged": 2, "first_damaged": ["a.jsonl:1: image 1: x", "a.jsonl:9: image 9: y"]}),
            split(),
            "train: 2 of the 1,000 images (0.20%) are damaged, although they can be decoded; prepare_data.py leaves "
            "such images out with --refuse_damaged. The first: a.jsonl:1: image 1: x; a.jsonl:9: image 9: y",
        ),
        (
            split(usable=990, unusable={"empty_caption": 10}),
            split(),
            "train: 10 of the 1,000 entries (1.00%) are unusable: 10 empty caption; they are left out",
        ),
        (
            split(images={"smaller": 101}),
            split(images={"smaller": 100}),
            "train: 101 of the 1,000 images (10.10%) have a short side below --image_size=224 pixels "
            "and will be enlarged",
        ),
        (
            split(images={"repeated": 2}),
            split(),
            "train: 2 of the 1,000 images (0.20%) have the same bytes as an image of another image_id; training takes "
            "them for different images",
        ),
        (
            split(captions={"repeated": 102, "repeated_share": 0.051}),
            split(captions={"repeated_share": 0.05}),
            "train: 102 of the 2,000 captions (5.10%) are also a caption of another image; contrastive losses take "
            "these for mistakes",
        ),
        (
            split(captions={"repeated": 500, "text_ids": {"texts": 9, "captions_of_several_images": 399}}),
            split(captions={"repeated": 500, "text_ids": {"texts": 9, "captions_of_several_images": 400}}),
            "train: 101 of the 2,000 captions (5.05%) are also a caption of another image; contrastive losses take "
            "these for mistakes",
        ),
        (
            split(captions={"text_ids": {"texts": 400, "of_several_wordings": 1}}),
            split(captions={"text_ids": {"texts": 400, "of_several_wordings": 0}}),
            "train: 1 of the 400 text_ids (0.25%) stand for captions of different characters; training and evaluation "
            "take these for one text",
        ),
        (
            split(tokens={"cut": 102, "cut_share": 0.051}),
            split(tokens={"cut_share": 0.05}),
            "train: 102 of the 2,000 captions (5.10%) are longer than --text_length=64 tokens and will be cut",
        ),
        (
            split(shards=ShardFigures(3, Limits(333, 334), Limits(0, 1))),
            split(shards=ShardFigures(4, Limits(250, 250), Limits(1, 1))),
            "train: fewer shards (3) than --hosts=4; prepare it with one or more for each",
        ),
        (
            split(shards=ShardFigures(4, Limits(1, 501), Limits(1, 1))),
            split(shards=ShardFigures(4, Limits(1, 500), Limits(1, 1))),
            "train: shards are very uneven: the largest has 501 records, more than twice the mean of 250",
        ),
    ],
)
def test_warnings_of_a_split(train: SplitReport, sound: SplitReport, warning: str) -> None:
    assert found(train=train) == ([], [warning])
    assert found(train=sound) == ([], [])


def test_what_was_not_measured_is_not_judged() -> None:
    unmeasured = split(shards=None, captions={"tokens": None})
    assert found(train=unmeasured) == ([], [])
