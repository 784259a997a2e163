"""Damage that decoders pass over is seen where the format can tell; the check counts it, the preparation refuses it."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from small_check import settings
from small_corpora import prepared, records, skipped
from small_data import encode
from small_images import save

from r2d2_jax.data.image.transforms import verify_image
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.sources import CorpusSource
from r2d2_jax.preparation.checks.table import table
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.damage import damage
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.prepare import Settings, prepare
from r2d2_jax.preparation.progress import Watch
from r2d2_jax.preparation.shard_task import Job, ShardTask

PATCHES = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
PICTURE = Image.fromarray(PATCHES).resize((600, 400), Image.Resampling.BICUBIC)
PNG = save(PICTURE)


def zeroed(encoded: bytes, count: int = 400) -> bytes:
    """With so many bytes in the middle set to zero."""
    middle = len(encoded) // 2
    return encoded[:middle] + bytes(count) + encoded[middle + count :]


SOUND = {
    "JPEG": save(PICTURE, "JPEG"),
    "progressive": save(PICTURE, "JPEG", progressive=True),
    "restart markers": save(PICTURE, "JPEG", restart_marker_blocks=4),
    "grey": save(PICTURE.convert("L"), "JPEG"),
    "CMYK": save(PICTURE.convert("CMYK"), "JPEG"),
    "Adobe's CMYK": simplejpeg.encode_jpeg(np.dstack([PATCHES, PATCHES[..., 0]]), 90, "CMYK", "444"),
    "RGB": save(PICTURE, "JPEG", keep_rgb=True),
    "MPO": save(PICTURE, "MPO", save_all=True, append_images=[PICTURE.resize((60, 40))]),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_jpeg_of_which_libjpeg_warns(kind: str) -> None:
    encoded = SOUND[kind]
    assert damage(encoded) == damage(encoded + b"bytes after the end") == ""
    verify_image(zeroed(encoded))
    assert damage(zeroed(encoded)).startswith("Corrupt JPEG data: ")


NEWER_JFIF = b"\xff\xe0\0\x10JFIF\0\x09\x01\0\0\x01\0\x01\0\0"


@pytest.mark.parametrize(
    "segment", [b"\xff\xe2\0\x12ICC_PROFILE\0\x03\x01ab", b"\xff\xe1\0\x10Exif\0\0garbage!", NEWER_JFIF]
)
def test_metadata_is_no_damage(segment: bytes) -> None:
    encoded = SOUND["JPEG"][:2] + segment + SOUND["JPEG"][2:]
    assert damage(encoded) == ""
    assert damage(zeroed(encoded)).startswith("Corrupt JPEG data: ")


def test_a_png_with_a_wrong_checksum() -> None:
    encoded = PNG[:-16] + b"abcd" + PNG[-12:]
    verify_image(encoded)
    assert damage(encoded) == "the checksum of IDAT is wrong"
    assert damage(PNG) == damage(PNG[:33] + b"\0\0\0\0tEXtabcd" + PNG[33:]) == ""


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_other_formats_cannot_tell(kind: str) -> None:
    assert damage(zeroed(save(PICTURE, kind), 20)) == ""


@pytest.mark.parametrize("encoded", [b"", b"\xff\xd8\xff", b"text"])
def test_what_is_no_image_is_not_damaged(encoded: bytes) -> None:
    assert damage(encoded) == ""


@pytest.fixture
def corpus(tmp_path: Path) -> JsonLines:
    """Two sound images and two damaged ones."""
    images = {
        "0.jpg": encode((90, 70)),
        "1.jpg": zeroed(SOUND["JPEG"]),
        "2.png": PNG[:-16] + b"abcd" + PNG[-12:],
        "3.jpg": SOUND["JPEG"],
    }
    (tmp_path / "images").mkdir()
    for name, image in images.items():
        (tmp_path / "images" / name).write_bytes(image)
    lines = [json.dumps({"image": name, "captions": ["一只狗"], "split": "train"}) for name in images]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    return JsonLines(str(tmp_path / "images"), str(tmp_path / "captions.jsonl"))


def test_the_check_counts_and_names_them(corpus: JsonLines, tmp_path: Path, vocabulary: Path) -> None:
    report = check(functools.partial(CorpusSource, corpus), "corpus", settings(vocabulary))
    images = report.splits["train"].images
    assert (report.splits["train"].usable, images.damaged) == (4, 2)
    first = [line.replace(f"{tmp_path}/", "") for line in images.first_damaged]
    assert first[0].startswith("captions.jsonl:2: image 1.jpg: Corrupt JPEG data: ")
    assert first[1] == "captions.jsonl:3: image 2.png: the checksum of IDAT is wrong"
    (warning,) = [line for line in report.warnings if "damaged" in line]
    assert warning.endswith("; ".join(images.first_damaged))
    assert "\n  damaged, yet decoded" in table(report)
    assert f"train, damaged images that can be decoded:\n  {images.first_damaged[0]}" in table(report)


@pytest.mark.parametrize("short_side", [0, 50])
def test_the_preparation_leaves_them_out_if_it_is_told_to(corpus: JsonLines, tmp_path: Path, short_side: int) -> None:
    prepared(corpus, tmp_path / "all", short_side=short_side)
    preparation = prepared(corpus, tmp_path / "sound", 0.5, short_side=short_side, refuse_damaged=True)
    assert [record.image_id for record in records(tmp_path / "all")] == ["0.jpg", "1.jpg", "2.png", "3.jpg"]
    assert [record.image_id for record in records(tmp_path / "sound")] == ["0.jpg", "3.jpg"]
    reasons = skipped(preparation, tmp_path)
    assert reasons[0].startswith(
        "captions.jsonl:2: image 1.jpg: the image is damaged, although it can be decoded: Corrupt JPEG data: "
    )
    assert reasons[1].endswith("2.png: the image is damaged, although it can be decoded: the checksum of IDAT is wrong")


def test_too_many_stop_the_preparation(corpus: JsonLines, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of the 4 entries are unusable so far"):
        prepared(corpus, tmp_path / "out", refuse_damaged=True)


class Killed(BaseException):
    """What stops a preparation."""


@pytest.mark.parametrize("before", [False, True])
def test_work_that_was_begun_otherwise_is_not_continued(corpus: JsonLines, tmp_path: Path, before: bool) -> None:
    def killed(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        in_processes(1)(job, tasks[:1], watch)
        raise Killed

    begun = Settings(max_broken_share=1, refuse_damaged=before)
    with pytest.raises(Killed):
        prepare(corpus, str(tmp_path / "out"), begun, run=killed)
    with pytest.raises(UserError, match="other settings or files.*\n.*refuse_damaged"):
        prepare(corpus, str(tmp_path / "out"), Settings(max_broken_share=1, refuse_damaged=not before))
    prepare(corpus, str(tmp_path / "out"), begun)
