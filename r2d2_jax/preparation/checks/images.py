"""Measures single images: size, format, colours, orientation, damage."""

from collections import Counter
from dataclasses import dataclass, field

from PIL import Image

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import opened, orientation, upright_size
from r2d2_jax.data.image.transforms import verify_image
from r2d2_jax.preparation.checks.figures import Figures, Spread

# Ranges of width to height; each includes the end nearer to a square. The crops of training lie within 3:4 and 4:3.
ASPECT_RATIOS = ("under 1:3", "1:3 to 1:2", "1:2 to 3:4", "3:4 to 4:3", "4:3 to 2:1", "2:1 to 3:1", "over 3:1")
_SHORT_TO_LONG = (1 / 3, 1 / 2, 3 / 4)
COLOURS = ("CMYK", "palette", "alpha", "16 bit")


@dataclass
class ImageFigures(Figures):
    """Figures of complete images, turned upright by their EXIF tag.

    widths, heights, short_sides: in pixels. file_sizes: of the encoded images, in bytes.
    formats: Pillow's names, such as JPEG. modes: Pillow's, such as RGB, L, CMYK.
    colours: how many have each of COLOURS; an image may have several. "16 bit" counts greyscale images only: Pillow
        reduces 16-bit colour to 8 bits without a sign of it.
    aspect_ratios: how many lie in each range of ASPECT_RATIOS. rotated: how many the EXIF tag turns or mirrors.
    """

    count: int = 0
    rotated: int = 0
    widths: Spread = field(default_factory=Spread)
    heights: Spread = field(default_factory=Spread)
    short_sides: Spread = field(default_factory=Spread)
    file_sizes: Spread = field(default_factory=Spread)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    colours: Counter[str] = field(default_factory=Counter)
    aspect_ratios: Counter[str] = field(default_factory=Counter)

    def add(self, encoded: bytes) -> None:
        """Counts an image.

        Raises:
            UnusableRecord: the bytes are not a complete image; then nothing is counted.
        """
        verify_image(encoded)
        with opened(encoded) as image:
            width, height = upright_size(image)
            colours, rotated = _colours(image), orientation(image) in range(2, 9)
            self.formats[str(image.format)] += 1
            self.modes[image.mode] += 1
        self.count += 1
        self.rotated += rotated
        self.widths.add(width)
        self.heights.add(height)
        self.short_sides.add(min(width, height))
        self.file_sizes.add(len(encoded))
        self.colours.update(colours)
        self.aspect_ratios[aspect_ratio(width, height)] += 1


def aspect_ratio(width: int, height: int) -> str:
    """The range of ASPECT_RATIOS of an image of this size."""
    short, long = sorted((width, height))
    nearness = sum(short >= limit * long for limit in _SHORT_TO_LONG)
    return ASPECT_RATIOS[nearness if width < height else len(ASPECT_RATIOS) - 1 - nearness]


def damage_kind(error: UnusableRecord, encoded: bytes) -> str:
    """Returns "truncated" for an image that is cut short, "undecodable" for any other that cannot be read.

    Only Pillow's message tells the two apart, and for WEBP not even that; there the length in its header does. AVIF and
    JPEG 2000 that are cut short early count as undecodable.
    """
    return "truncated" if "truncated" in str(error).lower() or _is_short_riff(encoded) else "undecodable"


def _is_short_riff(encoded: bytes) -> bool:
    """Whether this is WEBP's container (RIFF) with fewer bytes than its header states, the first eight not counted."""
    return encoded[:4] == b"RIFF" and len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")


def _colours(image: Image.Image) -> list[str]:
    has = (image.mode == "CMYK", image.mode in ("P", "PA"), image.has_transparency_data, image.mode.startswith("I"))
    return [colour for colour, present in zip(COLOURS, has, strict=True) if present]
