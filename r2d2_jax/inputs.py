"""Images and texts as people bring them to a model, checked, in the forms that the encoder takes.

What the caller brings is never changed: pictures are turned, and files read, as copies.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFile

from r2d2_jax.config.model import TextTowerConfig
from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import decoder_errors
from r2d2_jax.data.image.transforms import evaluation_image, square_image
from r2d2_jax.errors import UserError, first_line

OneImage = Any  # a path, the bytes of a file, an open file, a PIL image, or an array; see `ImageList`
Images = OneImage | Iterable[OneImage]
Texts = str | Iterable[str]

# CLIP's normalisation gives -1.8 to 2.2; no other in use comes near this. Beyond, the pixels are not normalised.
LARGEST_NORMALISED = 10.0
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)
_EXPECTED = "expected a path, a PIL image, the bytes of an image file, or a uint8 array [h w 3], or several of them"


@dataclass(frozen=True)
class ImageList:
    """Images in the order in which they came; each is read when its batch is asked for.

    items: float32 [b side side 3], already normalised, or a list of images in any other form.
    side: of the model's images, in pixels. single: whether one image came, not several.
    """

    items: np.ndarray | list[OneImage]
    side: int
    single: bool = False

    @classmethod
    def of(cls, images: Images, side: int) -> "ImageList":
        """Lists one image or several, checked as far as that needs no reading.

        Args:
            images: see `Ranker.encode_image`.
            side: of the model's images, in pixels.

        Raises:
            UserError: they are neither one image nor several, or normalised images of another size.
        """
        images = as_array(images, "images") if _is_tensor(images) else images
        if isinstance(images, np.ndarray) and (images.dtype.kind in "OUST" or images.shape == (0,)):
            images = images.tolist()
        if isinstance(images, np.ndarray):
            return cls._of_array(images, side)
        if isinstance(images, (str, os.PathLike, Image.Image, bytes, bytearray, memoryview)) or hasattr(images, "read"):
            return cls([images], side, single=True)
        if isinstance(images, Mapping) or not isinstance(images, Iterable):
            raise UserError(f"images are {described(images)}; {_EXPECTED}")
        items = [as_array(image, f"images[{place}]") if _is_tensor(image) else image
                 for place, image in enumerate(images)]  # fmt: skip
        if items and all(isinstance(image, np.ndarray) and _is_float(image) for image in items):
            if len(shapes := {image.shape for image in items}) == 1:
                return cls._of_array(np.stack(items), side)
            raise UserError(f"normalised images have {len(shapes)} shapes; expected float32 [{side} {side} 3] of each")
        return cls(items, side)

    @classmethod
    def _of_array(cls, images: np.ndarray, side: int) -> "ImageList":
        if _is_float(images):
            return cls(_normalised(images, side), side, single=images.ndim == 3)
        if images.ndim in (2, 3):
            return cls([images], side, single=True)
        if images.ndim != 4:
            raise UserError(f"images are {described(images)}; expected uint8 [h w 3] or [b h w 3]")
        return cls(list(images), side)

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """What the image tower takes, batch by batch."""
        return (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def rows(self, rows: slice) -> np.ndarray:
        """Some of the images: float32 [b side side 3] of normalised ones, else uint8 [b side side 3].

        Raises:
            UserError: an image is absent, damaged, or an array of another form.
        """
        if isinstance(self.items, np.ndarray):
            return self.items[rows]
        places = range(len(self))[rows]
        empty = np.zeros((0, self.side, self.side, 3), np.uint8)
        return np.concatenate([empty, *(self._square(place)[None] for place in places)])

    def _square(self, place: int) -> np.ndarray:
        image = self.items[place]
        try:
            if isinstance(image, np.ndarray):
                return square_image(_picture(image), self.side)
            if isinstance(image, Image.Image):
                with decoder_errors():
                    return square_image(_decodable(image), self.side)
            return evaluation_image(_file_content(image), self.side)
        except (OSError, UnusableRecord) as error:
            advice = "; name a complete image file" if isinstance(image, (str, os.PathLike)) else ""
            raise UserError(f"{self._name(place)}: {first_line(error)}{advice}") from error

    def _name(self, place: int) -> str:
        what = described(self.items[place])
        if not self.single:
            return f"images[{place}], {what}"
        return f"image of {what}" if isinstance(self.items[place], (bytes, bytearray, memoryview)) else f"image {what}"


def described(thing: object) -> str:
    """What something is, in a few words: a path itself, or the kind and size of anything else."""
    if isinstance(thing, (str, os.PathLike)):
        return str(thing) or "''"
    if isinstance(thing, Image.Image):
        name = getattr(thing, "filename", "")
        return f"a PIL image, {thing.mode} {thing.width} x {thing.height}{f', of {name}' if name else ''}"
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {list(thing.shape)}"
    if isinstance(thing, (bytes, bytearray, memoryview)):
        return f"{len(thing)} bytes"
    return "None" if thing is None else f"of type {type(thing).__name__}"


def as_array(thing: object, name: str) -> np.ndarray:
    """A NumPy array of a tensor of any library, or of nested lists.

    Raises:
        UserError: it cannot become one.
    """
    try:
        return np.asarray(thing)
    # Each library has its own way to refuse: tensors that need gradients, lie on a device, or are of no NumPy type.
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot become a NumPy array: {first_line(error)}") from error


def _is_tensor(thing: object) -> bool:
    """An array of another library, such as JAX, PyTorch or pandas; Pillow's pictures can become arrays too."""
    return hasattr(thing, "__array__") and not isinstance(thing, (np.ndarray, np.generic, Image.Image))


def _is_float(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))  # bfloat16, too, which is no float to NumPy


def _normalised(images: np.ndarray, side: int) -> np.ndarray:
    if images.shape[-3:] != (side, side, 3) or images.ndim not in (3, 4):
        raise UserError(
            f"normalised images have the shape {list(images.shape)}; expected float32 [b {side} {side} 3]; an image "
            "that is not normalised is uint8, of any size"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
        images = images.reshape(-1, side, side, 3).astype(np.float32)
    if images.size and not max(-images.min(), images.max()) <= LARGEST_NORMALISED:
        wrong = ~(np.abs(images).max(axis=(1, 2, 3)) <= LARGEST_NORMALISED)
        raise UserError(
            f"images[{np.argmax(wrong)}] of the normalised images has values that are not finite or beyond "
            f"{LARGEST_NORMALISED:g}; subtract CLIP's mean and divide by its deviation, or give uint8 pixels"
        )
    return images


def _picture(pixels: np.ndarray) -> Image.Image:
    """A picture of an array [h w], [h w 1], [h w 3] or, with transparency, [h w 4]."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))):
        turned = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[-1] not in (1, 3, 4)
        advice = "transpose [3 h w] to [h w 3]" if turned else "values from 0 to 255, as red, green and blue"
        raise UnusableRecord(f"expected uint8 [h w 3]; {advice}")
    if not pixels.size:
        raise UnusableRecord("there are no pixels")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _decodable(image: Image.Image) -> Image.Image:
    """The picture itself, or, as decoding would change it, another of the same file if it is not yet decoded."""
    if not image.width or not image.height:
        raise UnusableRecord("there are no pixels")
    decoded = vars(image).get("_im", vars(image).get("im"))  # the second in Pillow 10
    if isinstance(image, ImageFile.ImageFile) and decoded is None:
        if image.fp is None or image.fp.closed:
            raise UnusableRecord("it was closed before it was read")
        # MPO, of phones with two lenses, has no opener of its own: that of JPEG finds out.
        formats = [image.format] if image.format in Image.OPEN else None
        twin = Image.open(io.BytesIO(_read_whole(image.fp)), formats=formats)
        twin.seek(image.tell())
        return twin
    return image


def _file_content(image: OneImage) -> bytes:
    """The bytes of an image file."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if hasattr(image, "read"):
        return _read_whole(image)
    if not isinstance(image, (str, os.PathLike)):
        raise UnusableRecord(_EXPECTED)
    path = os.fsdecode(image)
    if _ADDRESS.match(path):
        raise UnusableRecord("addresses are not opened: download the file, or give its bytes")
    try:
        return Path(path).expanduser().read_bytes()
    except (ValueError, RuntimeError) as error:  # a NUL, half of a character; a home of nobody
        raise UnusableRecord(f"no such path can be: {first_line(error)}") from error


def _read_whole(file: Any) -> bytes:
    """Everything in an open file, whose position stays; from its beginning, as Pillow reads, if it can be rewound."""
    try:
        before = file.tell() if hasattr(file, "seekable") and file.seekable() else None
        if before is not None:
            file.seek(0)
        content = file.read()
        if before is not None:
            file.seek(before)
    except ValueError as error:  # it is closed, or opened for text that is none
        raise UnusableRecord(f"the file cannot be read: {first_line(error)}") from error
    if not isinstance(content, bytes):
        raise UnusableRecord('the file was opened for text; open it with "rb"')
    return content


def listed_texts(texts: Texts) -> list[str]:
    """One text or several as a list of plain strings.

    Raises:
        UserError: they are neither, or a text is none that can be encoded.
    """
    if isinstance(texts, str):
        texts = [texts]
    elif isinstance(texts, (Mapping, bytes, bytearray, memoryview)) or not isinstance(texts, Iterable):
        raise UserError(f"texts are {described(texts)}; expected a string or several, or input_ids with attention_mask")
    listed = list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            raise UserError(f"texts[{place}] is {described(text)}; expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"texts[{place}], {text!r}, has half of a character (a lone surrogate) at position {error.start}; read "
                "the text again with its own encoding"
            ) from error
    return [str.__str__(text) for text in listed]  # a subclass may show itself in another way


def checked_ids(
    input_ids: np.ndarray, attention_mask: np.ndarray | None, size: TextTowerConfig
) -> tuple[np.ndarray, np.ndarray]:
    """input_ids int32 [b l] and attention_mask bool [b l], of which one text may leave out `b`.

    Raises:
        UserError: they do not fit each other or the model.
    """
    mask = None if attention_mask is None else as_array(attention_mask, "attention_mask")
    if mask is None or mask.shape != input_ids.shape or input_ids.ndim not in (1, 2):
        raise UserError(
            f"input_ids have the shape {list(input_ids.shape)} and attention_mask "
            f"{None if mask is None else list(mask.shape)}; expected both [b l]"
        )
    ids, mask = np.atleast_2d(input_ids), np.atleast_2d(mask)
    if ids.shape[1] > size.max_positions:
        raise UserError(f"texts have {ids.shape[1]} tokens; the model has {size.max_positions} positions: cut them")
    if len(ids):
        _check_values(ids, mask, size.vocabulary_size)
    return ids.astype(np.int32), mask.astype(bool)


def _check_values(ids: np.ndarray, mask: np.ndarray, vocabulary_size: int) -> None:
    if not ids.shape[1]:
        raise UserError(f"input_ids have the shape {list(ids.shape)}: no token; an empty text is CLS and SEP")
    if ids.dtype.kind not in "iu":
        raise UserError(f"input_ids are {ids.dtype}; expected integers")
    if not (ids.min() >= 0 and ids.max() < vocabulary_size):
        raise UserError(
            f"input_ids run from {ids.min()} to {ids.max()}; the model has {vocabulary_size} tokens: "
            "use its own vocabulary"
        )
    if not np.isin(mask, (0, 1)).all():
        raise UserError("attention_mask has values other than 0 and 1; expected 1 where there is a token, else 0")
    if not mask[:, 0].all():
        raise UserError(
            f"attention_mask hides the first token of text {np.argmin(mask[:, 0])}, by which the model reads a text; "
            "begin with CLS, and pad at the end"
        )


def checked_tokens(image: Any, text: Any, attention_mask: Any, widths: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Tokens float32 [b n d], [b l d] and attention_mask bool [b l] that the towers gave.

    Raises:
        UserError: there are none, they do not fit each other or the model's `widths`, or are not finite.
    """
    if image is None or text is None or attention_mask is None:
        raise UserError(
            "there are no tokens; expected the `host_tokens` of images and texts encoded with tokens=True, and the "
            "attention_mask of `token_ids`"
        )
    tokens = as_array(image, "image_tokens"), as_array(text, "text_tokens")
    mask = as_array(attention_mask, "attention_mask")
    for name, array, width in zip(("image_tokens", "text_tokens"), tokens, widths, strict=True):
        if array.ndim != 3 or array.shape[-1] != width or not _is_float(array):
            raise UserError(f"{name} are {described(array)}; expected float32 [b tokens {width}]")
        if not np.isfinite(array).all():
            raise UserError(f"{name} hold NaN or infinity; encode the images and texts again")
    rows = len(mask) if mask.ndim else 0
    if not len(tokens[0]) == len(tokens[1]) == rows:
        raise UserError(
            f"{len(tokens[0])} rows of image tokens, {len(tokens[1])} of text tokens, {rows} of attention_mask; "
            "expected as many of each"
        )
    if mask.shape != tokens[1].shape[:2]:
        raise UserError(f"attention_mask has the shape {list(mask.shape)}; expected {list(tokens[1].shape[:2])}")
    return tokens[0].astype(np.float32), tokens[1].astype(np.float32), mask.astype(bool)
