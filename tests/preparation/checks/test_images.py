"""Every property of an image is counted once, and a broken image not at all."""

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_data import encode

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.checks.images import ImageFigures, aspect_ratio, damage_kind

HALVES = {kind: len(encode((200, 200), kind=kind)) // 2 for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


def saved(mode: str, size: tuple[int, int] = (40, 30), kind: str = "PNG", **settings: Any) -> bytes:
    image = Image.fromarray(np.zeros(size[::-1], np.uint16)) if mode == "I;16" else Image.new(mode, size)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved("RGB", kind="JPEG", exif=exif)


def figures(*images: bytes) -> ImageFigures:
    counted = ImageFigures()
    for image in images:
        counted.add(image)
    return counted


@pytest.mark.parametrize(
    ("image", "mode", "colours"),
    [
        (saved("RGB"), "RGB", {}),
        (saved("L", kind="JPEG"), "L", {}),
        (saved("CMYK", kind="JPEG"), "CMYK", {"CMYK": 1}),
        (saved("P"), "P", {"palette": 1}),
        (saved("P", transparency=0), "P", {"palette": 1, "alpha": 1}),
        (saved("RGBA"), "RGBA", {"alpha": 1}),
        (saved("I;16"), "I;16", {"16 bit": 1}),
    ],
)
def test_colours(image: bytes, mode: str, colours: dict[str, int]) -> None:
    counted = figures(image)
    assert counted.modes == {mode: 1}
    assert counted.colours == colours


def test_sizes_and_formats() -> None:
    images = [encode((40, 30)), encode((300, 20), kind="PNG"), encode((50, 60), kind="WEBP")]
    counted = figures(*images)
    assert counted.count == 3
    assert counted.formats == {"JPEG": 1, "PNG": 1, "WEBP": 1}
    assert sorted(counted.widths.counts) == [40, 50, 300]
    assert sorted(counted.heights.counts) == [20, 30, 60]
    assert sorted(counted.short_sides.counts) == [20, 30, 50]
    assert (counted.file_sizes.minimum, counted.file_sizes.maximum) == (min(map(len, images)), max(map(len, images)))
    assert counted.aspect_ratios == {"3:4 to 4:3": 2, "over 3:1": 1}


def test_images_are_measured_upright() -> None:
    counted = figures(turned(1), turned(3), turned(6))
    assert counted.rotated == 2
    assert counted.widths.counts == Counter({40: 2, 30: 1})


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((99, 300), "under 1:3"),
        ((100, 300), "1:3 to 1:2"),
        ((150, 300), "1:2 to 3:4"),
        ((225, 300), "3:4 to 4:3"),
        ((300, 300), "3:4 to 4:3"),
        ((300, 225), "3:4 to 4:3"),
        ((300, 224), "4:3 to 2:1"),
        ((300, 150), "4:3 to 2:1"),
        ((300, 149), "2:1 to 3:1"),
        ((300, 100), "2:1 to 3:1"),
        ((300, 99), "over 3:1"),
    ],
)
def test_aspect_ratios_mirror_each_other(size: tuple[int, int], name: str) -> None:
    assert aspect_ratio(*size) == name


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        *((encode((200, 200), kind=kind)[:share], "truncated") for kind in HALVES for share in (HALVES[kind], -60)),
        (encode((200, 200), kind="WEBP")[:16] + bytes(2000), "undecodable"),  # not cut, by what it says of its length
        (b"", "undecodable"),
        (b"no image", "undecodable"),
        (encode()[:2] + bytes(100), "undecodable"),
    ],
)
def test_broken_images_are_not_counted(image: bytes, kind: str) -> None:
    counted = ImageFigures()
    with pytest.raises(UnusableRecord) as raised:
        counted.add(image)
    assert damage_kind(raised.value, image) == kind
    assert counted == ImageFigures()
