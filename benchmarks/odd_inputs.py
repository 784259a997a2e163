"""Random variations of what people bring: vocabulary files, annotation lines, image files, and inputs of a model.

All of them are drawn from a NumPy generator, so a seed and a number give the same input again.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Rng = np.random.Generator

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = "红蓝圆方大小左边一只狗在路上"
ODD_TEXTS = (
    "", " ", "\u3000", "\u200b", "\ufeff", "\u00ad", "\x00", "\x85", "\u2028", "\u2029", "\x0b", "\x1c", "\r", "\t",
    "\U0001f60d", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "Ａｐｐｌｅ", "ﬁ", "e\u0301", "\u0301", "龍鳳", "[SEP]",
    "[mask]", "##a", "“红”——……", "\ud83d", "\udc80", "\uffff", "\U0010ffff", "\u202e", "a" * 300, "圆" * 3000,
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "gbk", "utf-16", "utf-32", "latin-1")
NEWLINES = ("\n", "\n", "\n", "\r\n", "\r", "\n\n", "\u2028", " \n", "\x00\n")


def choose(rng: Rng, items: Any) -> Any:
    """One of the items, each as likely as the others; unlike `rng.choice` it makes no array of them."""
    return items[int(rng.integers(len(items)))]


def text(rng: Rng) -> str:
    """Chinese characters, among which now and then something odd stands."""
    parts = [choose(rng, CHARACTERS) for _ in range(rng.integers(0, 12))]
    for _ in range(int(rng.integers(0, 3))):
        parts.insert(int(rng.integers(len(parts) + 1)), choose(rng, ODD_TEXTS))
    return "".join(parts)


def damaged(rng: Rng, content: bytes) -> bytes:
    """Bytes of which some are flipped, cut off, blanked, repeated or added."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(changed) + 1)), int(2 ** rng.uniform(0, 11))
        part = changed[at : at + length]
        kind = rng.integers(6)
        if kind == 0:
            changed[at : at + length] = bytes(byte ^ int(rng.integers(1, 256)) for byte in part[:8]) + part[8:]
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at : at + length] = bytes(len(part))
        elif kind == 4:
            changed[at:at] = part * int(rng.integers(1, 4))
        else:
            changed[at:at] = rng.bytes(length)
    return bytes(changed)


def vocabulary_file(rng: Rng) -> bytes:
    """A vocab.txt: in another encoding, with other ends of lines, tokens twice, missing or odd, or damaged."""
    tokens = [*SPECIAL_TOKENS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS), "apple", "##s"]
    for _ in range(int(rng.integers(0, 4))):
        at = int(rng.integers(len(tokens)))
        kind = rng.integers(5)
        if kind == 0:
            tokens.insert(at, choose(rng, tokens))
        elif kind == 1:
            del tokens[at]
        elif kind == 2:
            tokens.insert(at, choose(rng, ODD_TEXTS))
        elif kind == 3:
            tokens[at] = f" {tokens[at]}"
        else:
            rng.shuffle(tokens)
    newline, encoding = choose(rng, NEWLINES), choose(rng, ENCODINGS)
    content = (newline.join(tokens) + newline * int(rng.integers(0, 3))).encode(encoding, "replace")
    return damaged(rng, content) if rng.random() < 0.3 else content


def annotation_lines(rng: Rng, images: list[str]) -> bytes:
    """A file of JSON lines about some of the images, of which some are odd and some damaged."""
    lines = [_annotation_line(rng, images) for _ in range(int(rng.integers(1, 8)))]
    return choose(rng, (b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"\x00\n")).join(lines)


def _annotation_line(rng: Rng, images: list[str]) -> bytes:
    odd: tuple[Any, ...] = (
        None,
        True,
        3,
        1.5,
        "",
        [],
        {},
        [None],
        [[]],
        "../a",
        "a\x00b",
        "/",
        "x" * 5000,
        "\ud83d",
        10**400,
    )
    line: dict[str, Any] = {
        "image": choose(rng, images),
        "captions": [text(rng) for _ in range(int(rng.integers(0, 4)))],
        "split": choose(rng, ("train", "train", "val", "test")),
    }
    if rng.random() < 0.3:
        line["image_id"] = choose(rng, (*images, *odd))
    if rng.random() < 0.3:
        line[choose(rng, ("image", "captions", "split", "foil", "images", "更多"))] = choose(rng, odd)
    if rng.random() < 0.2:
        line.pop(choose(rng, tuple(line)))
    whole: Any = choose(rng, (line,) * 9 + (choose(rng, odd),))
    content = json.dumps(whole, ensure_ascii=bool(rng.integers(2))).encode(choose(rng, ENCODINGS), "replace")
    return damaged(rng, content) if rng.random() < 0.2 else content


# format -> modes that Pillow writes in it
FORMATS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "MPO": ("L", "RGB"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"),
}


def image(rng: Rng) -> Image.Image:
    """A small picture of a random mode."""
    return _picture(rng, choose(rng, sorted({mode for modes in FORMATS.values() for mode in modes})))


def _picture(rng: Rng, mode: str) -> Image.Image:
    width, height = (int(2 ** rng.uniform(0, 8)) for _ in range(2))
    if mode == "F":
        high = 10.0 ** rng.integers(-3, 6)
        numbers = rng.uniform(-high * rng.integers(2), high, (height, width)).astype(np.float32)
        numbers[rng.random((height, width)) < 0.1 * rng.integers(2)] = choose(rng, (np.nan, np.inf, 0.0))
        return Image.fromarray(numbers)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(-(1 << 31), 1 << 31, (height, width), dtype=np.int32))
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height)).convert(mode)


def image_file(rng: Rng) -> bytes:
    """A `whole_image_file`, often damaged."""
    content = whole_image_file(rng)
    return damaged(rng, content) if rng.random() < 0.6 else content


def whole_image_file(rng: Rng) -> bytes:
    """An image file of one of the usual formats, with metadata of any size."""
    form = choose(rng, sorted(FORMATS))
    picture, options = _picture(rng, choose(rng, FORMATS[form])), _options(rng, form)
    written = io.BytesIO()
    try:
        picture.save(written, form, **options)
    except (ValueError, OSError, RuntimeError, SystemError):  # Pillow does not write such metadata to such a format
        written = io.BytesIO()
        picture.save(written, form)
    return written.getvalue()


def _options(rng: Rng, form: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        exif = Image.Exif()
        exif[0x0112] = choose(rng, (*range(10), 65535))  # orientation
        if rng.random() < 0.5:
            exif[0x9286] = rng.bytes(int(2 ** rng.uniform(0, 15)))  # user comment
        options["exif"] = exif.tobytes()
    if rng.random() < 0.3:
        options["icc_profile"] = rng.bytes(int(2 ** rng.uniform(0, 22)))
    if form == "PNG" and rng.random() < 0.4:
        options["pnginfo"] = _text_chunks(rng)
    if form == "JPEG":
        options |= {"progressive": bool(rng.integers(2)), "quality": int(rng.integers(1, 100))}
        if rng.random() < 0.3:
            options["comment"] = rng.bytes(int(2 ** rng.uniform(0, 15)))
    if form == "TIFF":
        options["compression"] = choose(rng, (None, "tiff_lzw", "tiff_deflate", "packbits"))
    if form == "MPO" or (form in ("GIF", "WEBP", "TIFF", "PNG") and rng.random() < 0.2):
        options |= {"save_all": True, "append_images": [_picture(rng, "RGB") for _ in range(int(rng.integers(1, 4)))]}
    return options


def _text_chunks(rng: Rng) -> PngInfo:
    chunks = PngInfo()
    for number in range(int(2 ** rng.uniform(0, 8))):
        size = int(2 ** rng.uniform(0, 12 if rng.random() < 0.9 else 24))
        chunks.add_text(f"key {number}", "a" * size, zip=bool(rng.integers(2)))
    return chunks


# What a caller may give as images or as texts beside what is meant, each made anew.
ODD_OBJECTS: tuple[Callable[[Rng], Any], ...] = (
    lambda rng: None,
    lambda rng: 3,
    lambda rng: float("nan"),
    lambda rng: object(),
    lambda rng: {},
    lambda rng: b"",
    lambda rng: rng.bytes(100),
    lambda rng: [],
    lambda rng: "nowhere.jpg",
    lambda rng: "a\x00b",
    lambda rng: "\ud83d",
    lambda rng: Path("."),
    lambda rng: [["a"], ["b"]],
    lambda rng: np.array(["a", "b"]),
    lambda rng: np.zeros(
        _shape(rng), choose(rng, ("uint8", "float32", "float16", "int64", "bool", "complex64", "object"))
    ),
    lambda rng: jnp.zeros(_shape(rng), choose(rng, ("uint8", "float32", "bfloat16", "int32"))),
    lambda rng: np.full((1, 24, 24, 3), choose(rng, (np.nan, np.inf, 1e30)), np.float32),
)


def _shape(rng: Rng) -> tuple[int, ...]:
    if rng.random() < 0.5:
        return tuple(choose(rng, (0, 1, 3, 24)) for _ in range(int(rng.integers(0, 5))))
    return choose(rng, ((24, 24, 3), (2, 24, 24, 3), (0, 24, 24, 3), (24, 24), (24, 24, 1), (24, 24, 4), (3, 24, 24)))


def query_images(rng: Rng, folder: Path) -> Any:
    """What a caller may give as images: paths, bytes, Pillow images, arrays, iterables of these, or nonsense."""

    def one() -> Any:
        kind = rng.integers(5)
        if kind == 0:
            return image(rng)
        if kind == 1:
            return image_file(rng)
        if kind == 2:
            path = folder / f"{int(rng.integers(4))}.image"
            path.write_bytes(image_file(rng))
            return choose(rng, (path, str(path)))
        if kind == 3:
            return rng.integers(0, 256, (int(rng.integers(1, 40)), int(rng.integers(1, 40)), 3), dtype=np.uint8)
        return choose(rng, ODD_OBJECTS)(rng)

    return _one_or_many(rng, one)


def query_texts(rng: Rng) -> Any:
    """What a caller may give as texts: strings, iterables of these, token ids, or nonsense."""

    def one() -> Any:
        return text(rng) if rng.random() < 0.8 else choose(rng, ODD_OBJECTS)(rng)

    if rng.random() < 0.1:
        return rng.integers(-2, 40, _shape(rng)[:2])
    return _one_or_many(rng, one)


def _one_or_many(rng: Rng, one: Callable[[], Any]) -> Any:
    if rng.random() < 0.4:
        return one()
    many = [one() for _ in range(int(rng.integers(0, 4)))]
    kinds: tuple[Callable[[list[Any]], Any], ...] = (list, tuple, iter, _generated, _values)
    return choose(rng, kinds)(many)


def _generated(items: list[Any]) -> Any:
    yield from items


def _values(items: list[Any]) -> Any:
    return dict(enumerate(items)).values()
