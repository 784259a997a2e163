"""Small images and image-text pairs that tests make up."""

import io

import numpy as np
from PIL import Image

from r2d2_jax.preparation.examples import Example


def encode(size: tuple[int, int] = (40, 30), seed: int = 0, kind: str = "JPEG") -> bytes:
    """A picture of coarse random patches, as a file's bytes."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def example(number: int, *captions: str, image: bytes | None = None, image_id: str | None = None) -> Example:
    """Example `number`; its image id is "image" and the number unless another is given."""
    identity = f"image{number}" if image_id is None else image_id
    return Example(encode(seed=number) if image is None else image, captions or (f"{number}只狗", "红球"), identity)
