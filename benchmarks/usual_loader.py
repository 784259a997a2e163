"""The data path as it is usually written, for comparison: Pillow transforms in a torch DataLoader.

It reads the same records, through TFDS, with the same tokenizer, and makes the same batches. The ten operations are
Pillow's, as torchvision applies them to PIL images: those that move pixels take the nearest one, torchvision's default,
which is faster than the bilinear interpolation of the published code and of ours.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageEnhance, ImageOps

from r2d2_jax.data.image.transforms import draw_crop, may_flip
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.data.train_batches import image_id_hash
from r2d2_jax.errors import UserError
from r2d2_jax.models.r2d2 import CLIP_DEVIATION, CLIP_MEAN

Transform = Callable[[Image.Image, int], Image.Image]
_CROP_SCALE = (0.5, 1.0)
_GREY = (128, 128, 128)
_FACTOR, _SHEAR, _PIXELS, _DEGREES = 1.0, 0.15, 5, 15  # of magnitude 5


def usual_batches(
    source: RecordSource, tokenizer: Tokenizer, *, image_size: int, batch_size: int, workers: int, normalised: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from a torch DataLoader, with the keys of `train_batches` (but for `problems`).

    Args:
        source: the training records.
        tokenizer: the same as ours; it is given a whole batch at a time, which is faster than one text.
        image_size: side of the images in pixels.
        batch_size: pairs in a batch.
        workers: processes; 0 works in this one.
        normalised: images are float32 [b 3 h w], normalised, as ToTensor and Normalize leave them, instead of uint8.

    Raises:
        UserError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("the comparison needs torch, which is not installed; pip install -e '.[convert]'") from error
    torch.set_num_threads(1)  # as in the workers
    loader: Iterable[Any] = torch.utils.data.DataLoader(
        Rows(source, image_size, normalised),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=Endless(len(source)),
        num_workers=workers,
        collate_fn=Collate(tokenizer),
        multiprocessing_context="spawn" if workers else None,
    )
    return iter(loader)


class Endless:
    """Record numbers in random order, every epoch another one."""

    def __init__(self, records: int) -> None:
        self._records = records

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self._records).tolist()


class Rows:
    """A map-style dataset: reads, decodes, augments."""

    def __init__(self, source: RecordSource, image_size: int, normalised: bool) -> None:
        self._folder, self._split, self._records = source.folder, source.split, len(source)
        self._size, self._normalised = image_size, normalised
        self._opened: Any = None  # in each worker by itself
        self._rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return self._records

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._opened is None:
            builder = tfds.builder_from_directory(self._folder)
            self._opened = builder.as_data_source(self._split, decoders={"image": tfds.decode.SkipDecoding()})
        record, rng = read(self._opened, index), self._rng
        caption = record["captions"][rng.integers(len(record["captions"]))].decode()
        image = decoded(record["image"])
        image = resized_crop(image, self._size, rng)
        if may_flip(caption) and rng.random() < 0.5:
            image = flipped(image)
        image = augmented(image, rng)
        return {
            "images": to_tensor(image, self._normalised),
            "caption": caption,
            "image_id": image_id_hash(record["image_id"].decode()),
        }


class Collate:
    """Tokenises a batch and stacks the rest with torch's own collation."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        input_ids, attention_mask = tokenised(self._tokenizer, [row["caption"] for row in rows])
        stacked = collated([{key: row[key] for key in ("images", "image_id")} for row in rows])
        return stacked | {"input_ids": input_ids, "attention_mask": attention_mask}


def read(records: Any, index: int) -> dict[str, Any]:
    """A record of a TFDS data source."""
    return records[index]


def decoded(encoded: bytes) -> Image.Image:
    """The image as RGB."""
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """RandomResizedCrop."""
    return image.crop(draw_crop(image.size, rng, _CROP_SCALE)).resize((size, size), Image.Resampling.BICUBIC)


def flipped(image: Image.Image) -> Image.Image:
    """The mirrored image."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two operations out of ten at magnitude 5, each with probability 0.5."""
    for choice in rng.integers(len(OPERATIONS), size=2):
        if rng.random() < 0.5:
            image = OPERATIONS[choice](image, 1 if rng.random() < 0.5 else -1)
    return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_GREY)


OPERATIONS: tuple[Transform, ...] = (
    lambda image, sign: image,
    lambda image, sign: ImageOps.autocontrast(image),
    lambda image, sign: ImageOps.equalize(image),
    lambda image, sign: ImageEnhance.Brightness(image).enhance(_FACTOR),
    lambda image, sign: ImageEnhance.Sharpness(image).enhance(_FACTOR),
    lambda image, sign: _affine(image, 1, sign * _SHEAR, 0, 0, 1, 0),
    lambda image, sign: _affine(image, 1, 0, 0, sign * _SHEAR, 1, 0),
    lambda image, sign: _affine(image, 1, 0, sign * _PIXELS, 0, 1, 0),
    lambda image, sign: _affine(image, 1, 0, 0, 0, 1, sign * _PIXELS),
    lambda image, sign: image.rotate(sign * _DEGREES, fillcolor=_GREY),
)


def to_tensor(image: Image.Image, normalised: bool) -> Any:
    """uint8 [h w 3], or float32 [3 h w] normalised."""
    import torch

    pixels = torch.from_numpy(np.array(image))
    if not normalised:
        return pixels
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_DEVIATION))
    return pixels.permute(2, 0, 1).contiguous().float().div_(255).sub_(mean).div_(deviation)


def tokenised(tokenizer: Tokenizer, captions: list[str]) -> tuple[Any, Any]:
    """input_ids and attention_mask of a batch, as tensors."""
    import torch

    input_ids, attention_mask = tokenizer(captions)
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows stacked by torch, into shared memory in a worker."""
    import torch

    return torch.utils.data.default_collate(rows)
