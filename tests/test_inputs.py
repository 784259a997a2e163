"""Images as people bring them: what can be meant is taken, the rest is one message, and nothing of theirs changes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_models import VOCABULARY, random_model

from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
ORIENTATION = 0x0112
TEXTS = ["大红圆", "小蓝方"]


@pytest.fixture(scope="module")
def model() -> Ranker:
    return Ranker(random_model(tokens=VOCABULARY), batch_size=4)


def encoded(kind: str = "PNG", pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


@pytest.fixture
def png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes of a.png, which lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    return encoded()


class OnlyReads:
    """A stream that cannot be rewound, as of a socket."""

    def read(self) -> bytes:
        return encoded()


def at_its_end() -> io.BytesIO:
    """As `image.save(file)` leaves a file."""
    file = io.BytesIO(encoded())
    file.seek(0, io.SEEK_END)
    return file


ONE_IMAGE: dict[str, Callable[[], Any]] = {
    "bytes": encoded,
    "bytearray": lambda: bytearray(encoded()),
    "memoryview": lambda: memoryview(encoded()),
    "file at its end": at_its_end,
    "stream": OnlyReads,
    "generator": lambda: (name for name in ["a.png"]),
    "tuple": lambda: ("a.png",),
    "set": lambda: {"a.png"},
    "values of a dict": lambda: {"a": "a.png"}.values(),
    "array of names": lambda: np.array(["a.png"]),
    "array of objects": lambda: np.array([Path("a.png")]),
    "jax array": lambda: jnp.asarray(PIXELS),
    "jax arrays": lambda: [jnp.asarray(PIXELS)],
    "not contiguous": lambda: np.asfortranarray(PIXELS),
    "negative strides": lambda: PIXELS[::-1].copy()[::-1],
    "opaque alpha": lambda: np.dstack([PIXELS, np.full((24, 24), 255, np.uint8)]),
    "PIL, not decoded": lambda: Image.open(io.BytesIO(encoded())),
    "PNG with a name, not decoded": lambda: Image.open("a.png"),
    "WebP, not decoded": lambda: Image.open(io.BytesIO(encoded("WEBP", lossless=True))),
}


def test_a_picture_of_a_phone_that_was_not_decoded(model: Ranker) -> None:
    file, second = io.BytesIO(), Image.fromarray(PIXELS[::-1].copy())
    Image.fromarray(PIXELS).save(file, "MPO", save_all=True, append_images=[second], quality=95)
    for place in (0, 1):
        picture = Image.open(file)
        picture.seek(place)
        decoded = picture.copy()
        assert picture.format == "MPO"
        np.testing.assert_array_equal(model.pixels(picture), model.pixels(decoded))


@pytest.mark.parametrize("name", ONE_IMAGE)
def test_every_form_gives_the_same_pixels(model: Ranker, png: bytes, name: str) -> None:
    found = model.pixels(ONE_IMAGE[name]())
    assert found.shape == (1, 24, 24, 3)
    np.testing.assert_array_equal(found[0], PIXELS)


def test_forms_may_be_mixed(model: Ranker, png: bytes) -> None:
    found = model.pixels([PIXELS, "a.png", Path("a.png"), png, Image.fromarray(PIXELS), jnp.asarray(PIXELS)])
    np.testing.assert_array_equal(found, np.stack([PIXELS] * 6))


def test_grey_arrays(model: Ranker) -> None:
    grey = PIXELS[..., 0]
    for form in (grey, grey[..., None]):
        np.testing.assert_array_equal(model.pixels(form)[0], np.repeat(grey[..., None], 3, axis=2))


def test_tensors_of_torch(model: Ranker) -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(model.pixels(torch.tensor(PIXELS))[0], PIXELS)
    ids, mask = model.token_ids(TEXTS)
    found = model.token_ids(torch.tensor(ids), torch.tensor(mask))
    np.testing.assert_array_equal(found, (ids, mask))
    with pytest.raises(UserError, match=r"images cannot become a NumPy array: .*requires grad"):
        model.encode_image(torch.zeros((1, 24, 24, 3), requires_grad=True))


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_normalised_images_of_other_precisions(model: Ranker, dtype: str) -> None:
    normalised = np.random.default_rng(1).normal(size=(2, 24, 24, 3)).astype(jnp.dtype(dtype))
    want = model.encode_image(normalised.astype(np.float32)).embed
    for form in (normalised, list(normalised), jnp.asarray(normalised)):
        np.testing.assert_array_equal(model.encode_image(form).embed, want)
    np.testing.assert_allclose(model.encode_image(normalised[0]).embed, want[:1], rtol=1e-5, atol=1e-5)


# --- pictures are the caller's --------------------------------------------------------------------------------------


def in_memory() -> Image.Image:
    picture = Image.fromarray(PIXELS[:12])
    picture.getexif()[ORIENTATION] = 6
    return picture


def of_a_file(kind: str) -> Image.Image:
    return Image.open(io.BytesIO(encoded(kind, PIXELS[:12], exif=turned_exif())))


def decoded(kind: str) -> Image.Image:
    picture = of_a_file(kind)
    picture.load()
    return picture


TURNED: dict[str, Callable[[], Image.Image]] = {"in memory": in_memory} | {
    f"{kind}, {state.__name__}": lambda kind=kind, state=state: state(kind)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF")
    for state in (of_a_file, decoded)
}


@pytest.mark.parametrize("name", TURNED)
def test_a_turned_picture_is_turned_for_the_model_alone(model: Ranker, name: str) -> None:
    picture, same = TURNED[name](), TURNED[name]()
    tiles = lambda: list(getattr(picture, "tile", ()))  # noqa: E731
    state = lambda: (picture.size, picture.mode, vars(picture)["_im"], tiles(), dict(picture.info))  # noqa: E731
    file, before = getattr(picture, "fp", None), state()
    position = file.tell() if file else None
    found = model.pixels([picture, picture])
    assert state() == before
    assert getattr(picture, "fp", None) is file
    assert position is None or (file is not None and file.tell() == position)
    np.testing.assert_array_equal(found[0], found[1])
    upright = same if name.startswith("TIFF") else same.transpose(Image.Transpose.ROTATE_270)
    same.load()
    upright = upright.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found[0], np.asarray(upright))
    assert picture.tobytes() == same.tobytes()
    assert picture.getexif().get(ORIENTATION) == same.getexif().get(ORIENTATION)


def test_a_frame_is_read_where_the_caller_stands(model: Ranker) -> None:
    frames = [Image.fromarray(np.full((24, 24, 3), value, np.uint8)) for value in (0, 255)]
    file = io.BytesIO()
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    picture = Image.open(file)
    picture.seek(1)
    assert model.pixels(picture).min() == 255
    assert picture.tell() == 1


def test_the_position_of_a_file_stays(model: Ranker) -> None:
    file = io.BytesIO(encoded())
    file.seek(7)
    model.pixels([file, file])
    assert file.tell() == 7


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16", "YCbCr", "HSV", "LAB"])
def test_pictures_of_every_mode(model: Ranker, mode: str) -> None:
    picture = Image.new(mode, (9, 7))
    assert model.encode_image(picture).embed.shape == (1, 16)
    assert (picture.mode, picture.size) == (mode, (9, 7))


# --- what is none ---------------------------------------------------------------------------------------------------


def closed(picture: Image.Image) -> Image.Image:
    picture.close()
    return picture


def left() -> Image.Image:
    """As a `with` leaves a picture that was not decoded."""
    with Image.open("a.png") as picture:
        return picture


CUT = encoded()[:900]
EXPECTED = "expected a path, a PIL image, the bytes of an image file, or a uint8 array"
NO_IMAGE: list[tuple[Callable[[], Any], str]] = [
    (lambda: None, f"images are None; {EXPECTED}"),
    (lambda: 5, f"images are of type int; {EXPECTED}"),
    (lambda: {"a": "a.png"}, f"images are of type dict; {EXPECTED}"),
    (lambda: [PIXELS, None], rf"images\[1\], None: {EXPECTED}"),
    (lambda: [["a.png"]], rf"images\[0\], of type list: {EXPECTED}"),
    (lambda: Image.open(io.BytesIO(CUT)), "image a PIL image, RGB 24 x 24: .*image file is truncated"),
    (lambda: CUT, "image of 900 bytes: .*image file is truncated"),
    (lambda: [PIXELS, b"hello"], r"images\[1\], 5 bytes: not an image"),
    (io.BytesIO, "image of type BytesIO: not an image: 0 bytes"),
    (lambda: io.StringIO("text"), 'image of type StringIO: the file was opened for text; open it with "rb"'),
    (lambda: closed_file(), "the file cannot be read: I/O operation on closed file"),
    (lambda: closed(Image.fromarray(PIXELS)), "a PIL image, RGB 24 x 24: .*Operation on closed image"),
    (left, "a PIL image, RGB 24 x 24, of a.png: it was closed before it was read"),
    (lambda: Image.new("La", (3, 3)), "a PIL image, La 3 x 3: .*conversion from La"),
    (lambda: Image.new("RGB", (0, 3)), "a PIL image, RGB 0 x 3: there are no pixels"),
    (lambda: PIXELS.transpose(2, 0, 1), r"image uint8 \[3, 24, 24\]: .*transpose \[3 h w\] to \[h w 3\]"),
    (lambda: PIXELS[None].transpose(0, 3, 1, 2), r"images\[0\], uint8 \[3, 24, 24\]: .*transpose"),
    (lambda: PIXELS.astype(int), r"image int64 \[24, 24, 3\]: expected uint8 \[h w 3\]; values from 0 to 255"),
    (lambda: PIXELS[:0], r"image uint8 \[0, 24, 3\]: there are no pixels"),
    (lambda: PIXELS[None, None], r"images are uint8 \[1, 1, 24, 24, 3\]; expected uint8 \[h w 3\] or \[b h w 3\]"),
    (lambda: [PIXELS, PIXELS / 255], r"images\[1\], float64 \[24, 24, 3\]: expected uint8"),
    (lambda: [PIXELS / 255, PIXELS[:9] / 255], r"normalised images have 2 shapes; expected float32 \[24 24 3\]"),
    (lambda: PIXELS[None].astype(np.float32), r"images\[0\] of the normalised images has values .*beyond 10"),
    (lambda: np.full((1, 24, 24, 3), np.nan), r"images\[0\] of the normalised images has values that are not finite"),
    (lambda: np.full((1, 24, 24, 3), 1e300), r"images\[0\] of the normalised images has values that are not finite"),
    (lambda: "https://a.b/c.jpg", "image https://a.b/c.jpg: addresses are not opened: download the file"),
    (lambda: "~nobody-has-this-name/a.png", "image ~nobody-has-this-name/a.png: no such path can be"),
    (lambda: "a\0b", "no such path can be: embedded null byte"),
    (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "not an image but a Git LFS pointer, which stands for one; run `git lfs pull`",
    ),
    (lambda: "", "image '': .*name a complete image file"),
]


def closed_file() -> io.BytesIO:
    file = io.BytesIO(encoded())
    file.close()
    return file


@pytest.mark.parametrize(("bring", "message"), NO_IMAGE)
def test_what_is_no_image_is_named(model: Ranker, png: bytes, bring: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.encode_image(bring())


def test_pixels_of_normalised_images_are_gone(model: Ranker) -> None:
    with pytest.raises(UserError, match=r"images are float32 \[1, 24, 24, 3\], already normalised; expected uint8"):
        model.pixels(np.zeros((1, 24, 24, 3)))
