"""Images of every kind become upright RGB; what is no image, not a whole one, or too large a one is named as such."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile
from small_data import encode
from small_images import RAMP, USES, save, shown, train, turned_by

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image import decoding
from r2d2_jax.data.image.decoding import MAX_PIXELS, EncodedImage
from r2d2_jax.data.image.transforms import evaluation_image, verify_image


def rgb(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels * (3 // len(channels)), -1).astype(np.uint8)


def alpha_on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(colour * share + 255 * (1 - share))


def palette_image(**settings: object) -> bytes:
    image = Image.fromarray((RAMP // 4).astype(np.uint8)).convert("L")
    image.putpalette([value for entry in range(64) for value in (entry, 2 * entry, 255 - entry)])
    return save(image, **settings)


def sixteen_bit_rgb() -> bytes:
    bgr = np.stack([RAMP[::-1], RAMP.T, RAMP], -1).astype(np.uint16) * 257
    return cv2.imencode(".png", bgr)[1].tobytes()


ENTRY = RAMP // 4
ALPHA = RAMP.T.copy()
COLOUR = rgb(RAMP, RAMP.T, RAMP[::-1])
KINDS = {
    "RGB": (save(Image.fromarray(COLOUR)), COLOUR),
    "grey": (save(Image.fromarray(RAMP)), rgb(RAMP)),
    "grey JPEG": (save(Image.fromarray(np.full((8, 8), 77, np.uint8)), "JPEG"), np.full((8, 8, 3), 77)),
    "16-bit grey": (save(Image.fromarray(RAMP.astype(np.uint16) * 257)), rgb(RAMP)),
    "16-bit RGB": (sixteen_bit_rgb(), COLOUR),
    "1-bit": (save(Image.fromarray(RAMP > 100)), rgb((RAMP > 100) * 255)),
    "palette": (palette_image(), rgb(ENTRY, 2 * ENTRY, 255 - ENTRY)),
    "palette, one entry transparent": (
        palette_image(transparency=9),
        np.where((ENTRY == 9)[..., None], 255, rgb(ENTRY, 2 * ENTRY, 255 - ENTRY)),
    ),
    "palette, alpha for each entry": (
        palette_image(transparency=bytes(range(0, 256, 4))),
        alpha_on_white(rgb(ENTRY, 2 * ENTRY, 255 - ENTRY), RAMP),
    ),
    "RGBA": (save(Image.fromarray(np.dstack([COLOUR, ALPHA]))), alpha_on_white(COLOUR, ALPHA)),
    "grey with alpha": (
        save(Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(ALPHA)])),
        alpha_on_white(rgb(RAMP), ALPHA),
    ),
    "RGB, one colour transparent": (
        save(Image.fromarray(COLOUR), transparency=tuple(map(int, COLOUR[2, 3]))),
        np.where((COLOUR[2, 3] == COLOUR).all(-1, keepdims=True), 255, COLOUR),
    ),
    "GIF": (save(Image.open(io.BytesIO(palette_image())), "GIF"), rgb(ENTRY, 2 * ENTRY, 255 - ENTRY)),
    "WebP": (save(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR),
    "BMP": (save(Image.fromarray(COLOUR), "BMP"), COLOUR),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str) -> None:
    encoded, expected = KINDS[kind]
    for pixels in (evaluation_image(encoded, 8), train(encoded)):
        assert (pixels.dtype, pixels.shape) == (np.uint8, (8, 8, 3))
        np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize("ink", [(0, 255, 255, 0), (255, 0, 0, 0), (60, 120, 0, 90), (0, 0, 0, 255)])
def test_inverted_cmyk_of_adobe(ink: tuple[int, int, int, int]) -> None:
    """Each of R, G, B is (255 - ink) (255 - black) / 255; Adobe's programs store 255 - ink."""
    stored = np.broadcast_to(255 - np.array(ink, np.uint8), (16, 16, 4)).copy()
    encoded = simplejpeg.encode_jpeg(stored, 98, "CMYK", "444")
    assert b"Adobe" in encoded
    expected = (255 - np.array(ink[:3])) * (255 - ink[3]) / 255
    for pixels in (evaluation_image(encoded, 8), train(encoded)):
        np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(expected, (8, 8, 3)), atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    encoded = save(Image.fromarray(blocks), "JPEG", exif=turned_by(orientation), quality=98, subsampling="4:4:4")
    upright = shown(blocks, orientation)
    image = EncodedImage(encoded)
    assert image.size == upright.shape[1::-1]
    pixels = image.pixels()[..., :3]
    assert np.abs(pixels.astype(int) - upright.astype(int)).mean() < 3
    expected = np.asarray(Image.fromarray(upright).resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
    for square in (evaluation_image(encoded, 8), train(encoded)):
        assert np.abs(square.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"progressive": True},
        {"subsampling": "4:4:4"},
        {"quality": 30},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
    ],
)
def test_jpegs_are_decoded_as_pillow_does(mode: str, settings: dict[str, object]) -> None:
    encoded = save(Image.open(io.BytesIO(encode((123, 77)))).convert(mode), "JPEG", **settings)
    pixels = EncodedImage(encoded).pixels()[..., :3]
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_reduced_size(reduction: int) -> None:
    for kind, settings in (("JPEG", {}), ("JPEG", {"exif": turned_by(3)}), ("PNG", {})):
        encoded = save(Image.open(io.BytesIO(encode((123, 77)))), kind, **settings)
        pixels = EncodedImage(encoded).pixels(reduction)
        fraction = reduction if kind == "JPEG" else 1
        assert pixels.shape == (-(-77 // fraction), -(-123 // fraction), 4)


def test_a_png_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes it to look for its orientation, too."""
    encoded, made = encode((40, 30), kind="PNG"), Image._getdecoder
    decoders: list[str] = []

    def counted(mode: str, name: str, *rest: object) -> object:
        decoders.append(name)
        return made(mode, name, *rest)

    monkeypatch.setattr(Image, "_getdecoder", counted)
    EncodedImage(encoded).pixels()
    assert decoders.count("zip") == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_of_photographs(kind: str) -> None:
    for use in USES:
        use(encode((40, 30), kind=kind))


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "TGA"])
def test_other_formats_are_not_opened(kind: str) -> None:
    """An EPS would be handed to Ghostscript, which runs what is written in it."""
    encoded = save(Image.new("RGB", (16, 16)), kind)
    for use in USES:
        with pytest.raises(UnusableRecord, match=f"^not an image: {len(encoded)} bytes in no known format$"):
            use(encoded)


@pytest.mark.parametrize(
    "start, name",
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypheix", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
    ],
)
def test_photographs_in_formats_that_are_not_read_are_named(start: bytes, name: str) -> None:
    message = f"^the image is {name}, which is not read here; convert it to JPEG or PNG$"
    for use in USES:
        with pytest.raises(UnusableRecord, match=message):
            use(start + bytes(100))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_truncated_file(kind: str) -> None:
    encoded = encode((90, 70), kind=kind)
    for use in USES:
        with pytest.raises(UnusableRecord, match="the image cannot be decoded: |not an image: "):
            use(encoded[: len(encoded) * 2 // 3])


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_file_that_is_no_image(content: bytes) -> None:
    for use in USES:
        with pytest.raises(UnusableRecord, match=f"not an image: {len(content)} bytes in no known format"):
            use(content)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg_that_claims(width: int, height: int) -> bytes:
    encoded = encode((16, 8))
    return encoded.replace(struct.pack(">HH", 8, 16), struct.pack(">HH", height, width), 1)


@pytest.mark.parametrize("width, height", [(8193, 8192), (10_000, 9_000), (60_000, 60_000), (2, 40_000_000)])
def test_too_many_pixels_are_refused_before_decoding(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below, between and above Pillow's own two limits, without its warning."""
    files = [png_that_claims(width, height)] + ([jpeg_that_claims(width, height)] if height < 2**16 else [])
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for encoded in files:
            for use in USES:
                message = f"^the image has {width} x {height} pixels, above the limit of 67,108,864$"
                with pytest.raises(UnusableRecord, match=message):
                    use(encoded)


def test_as_many_pixels_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PIXELS == 8192 * 8192
    monkeypatch.setattr(decoding, "MAX_PIXELS", 40 * 30)
    assert evaluation_image(encode((40, 30)), 8).shape == (8, 8, 3)
    with pytest.raises(UnusableRecord, match="the image has 41 x 30 pixels, above the limit of 1,200"):
        evaluation_image(encode((41, 30)), 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_pillows_own_limit_is_neither_used_nor_changed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a global, which other threads may rely on: here far below the image, so that Pillow would refuse it."""
    read: list[int | None] = []
    for name in ("upright_rgb", "_check_pixels"):
        original = getattr(decoding, name)
        monkeypatch.setattr(
            decoding, name, lambda *given, original=original: read.append(Image.MAX_IMAGE_PIXELS) or original(*given)
        )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    encoded = encode((40, 30), kind=kind)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(encoded))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EncodedImage(encoded).pixels().shape == (30, 40, 4)
        verify_image(encoded)
    with pytest.raises(UnusableRecord):
        verify_image(b"no image")
    assert set(read) == {Image.MAX_IMAGE_PIXELS} == {100}


def test_a_format_that_checks_pillows_limit_itself_is_named_as_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Pillow's WebP does from some version on."""

    def read_header(*_: object) -> Image.Image:
        raise Image.DecompressionBombError("Image size exceeds limit")

    monkeypatch.setattr(decoding, "_known_formats", lambda: [(read_header, None)])
    with pytest.raises(UnusableRecord, match="^the image has more pixels than the limit of 67,108,864$"):
        verify_image(encode())
