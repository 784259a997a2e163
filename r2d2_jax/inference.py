"""A model to ask: encode images, encode texts, and say how well they match."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from r2d2_jax.arrays import Encoded
from r2d2_jax.convert.conversion import STUDENT, open_model
from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.transforms import evaluation_image, square_image
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.errors import UserError
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.models.store import Model

OneImage = str | os.PathLike | Image.Image | np.ndarray
Images = OneImage | Sequence[OneImage]
Texts = str | Sequence[str]
Tree = Any


def load(
    path: str | os.PathLike,
    *,
    vocabulary: str | os.PathLike | None = None,
    weights: str = STUDENT,
    batch_size: int = 64,
    map_punctuation: bool | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
) -> "Ranker":
    """Loads a model for inference.

    Args:
        path: a published `.pth` or `.safetensors`, a converted or transformers folder, or the --workdir of a run.
        vocabulary: the WordPiece vocab.txt of the model; None means the one that the model came with.
        weights: of a run, "student" or "teacher".
        batch_size: the most rows of one forward.
        map_punctuation: map Chinese quotation marks, ellipsis and dash, which RoBERTa-wwm's vocabulary lacks, to ASCII.
            None means as in training: not for a published checkpoint, for ours as `data.map_punctuation` was.
        image_heads, text_heads: of a published checkpoint of unusual sizes, see `from_published`.

    Raises:
        UserError: there is no such model, it is damaged, or the vocabulary does not fit.
    """
    chosen = None if vocabulary is None else Path(vocabulary).expanduser()
    model = open_model(
        Path(path).expanduser(), weights=weights, image_heads=image_heads, text_heads=text_heads, vocabulary=chosen
    )
    return Ranker(model, batch_size=batch_size, map_punctuation=map_punctuation)


class Ranker:
    """A model with its vocabulary, compiled once for each number of rows that is a power of two.

    Results are NumPy arrays, float32.

    Attributes:
        config: the sizes.
    """

    def __init__(self, model: Model, *, batch_size: int = 64, map_punctuation: bool | None = None) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; expected 1 or more")
        self.config = model.config
        self._model, self._batch_size = model, batch_size
        self._params = jax.tree.map(jnp.asarray, model.params)
        self._map_punctuation = model.maps_punctuation if map_punctuation is None else map_punctuation
        self._tokenizer: Tokenizer | None = None
        module = model.module

        def encode_pixels(params: Tree, images: jax.Array) -> Any:
            return module.apply({"params": params}, normalise_images(images), method="encode_image")

        def encode_normalised(params: Tree, images: jax.Array) -> Any:
            return module.apply({"params": params}, images, method="encode_image")

        def encode_text(params: Tree, input_ids: jax.Array, attention_mask: jax.Array) -> Any:
            return module.apply({"params": params}, input_ids, attention_mask, method="encode_text")

        def match(params: Tree, image: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
            logits: Any = module.apply({"params": params}, text, mask, image, method="match")
            return match_probability(logits)

        self._encode_pixels, self._encode_normalised = jax.jit(encode_pixels), jax.jit(encode_normalised)
        self._encode_text, self._match = jax.jit(encode_text), jax.jit(match)

    def encode_image(self, images: Images) -> Encoded:
        """Encodes images.

        Args:
            images: one or several of: a path, a PIL image, a uint8 array [h w 3] of any size; or one float32 array
                [b h w 3] that is already normalised and of the model's size. What is no float is resized bicubically to
                a square and normalised with CLIP's mean and deviation, as in the published evaluation.

        Returns:
            tokens [b n d], feature [b e], embed [b e] of unit norm.

        Raises:
            UserError: an image is absent, damaged, or an array of another form.
        """
        if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
            side = self.config.image.image_size
            if images.shape[1:] != (side, side, 3):
                raise UserError(
                    f"normalised images have the shape {list(images.shape)}; expected float32 [b {side} {side} 3]"
                )
            return self._in_batches(self._encode_normalised, images.astype(np.float32))
        return self._in_batches(self._encode_pixels, self.pixels(images))

    def pixels(self, images: Images) -> np.ndarray:
        """The images as the model sees them: uint8 [b h w 3] of the model's size."""
        single = isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) == 3
        listed: Sequence[OneImage] = [images] if single else images  # type: ignore[list-item, assignment]
        if not len(listed):
            raise UserError("there are no images to encode; expected one or more")
        return np.stack([self._square(image) for image in listed])

    def encode_text(self, texts: Texts | np.ndarray, attention_mask: np.ndarray | None = None) -> Encoded:
        """Encodes texts.

        Args:
            texts: one or several strings, cut at the model's text length; or int input_ids [b l].
            attention_mask: [b l] with input_ids: true where there is a token.

        Returns:
            tokens [b l d], feature [b e], embed [b e] of unit norm. Strings are padded to the model's text length.

        Raises:
            UserError: the model came without a vocabulary, or ids and mask do not fit each other or the model.
        """
        input_ids, mask = self.token_ids(texts, attention_mask)
        return self._in_batches(self._encode_text, input_ids, mask)

    def token_ids(
        self, texts: Texts | np.ndarray, attention_mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """input_ids int32 [b l] and attention_mask bool [b l] of texts; ids that are given are only checked."""
        if not isinstance(texts, np.ndarray):
            listed = [texts] if isinstance(texts, str) else list(texts)
            if not listed:
                raise UserError("there are no texts to encode; expected one or more")
            return self.tokenizer(listed)
        size = self.config.text
        if attention_mask is None or np.shape(attention_mask) != texts.shape or texts.ndim != 2:
            raise UserError(
                f"input_ids have the shape {list(texts.shape)} and attention_mask "
                f"{None if attention_mask is None else list(np.shape(attention_mask))}; expected both [b l]"
            )
        if texts.shape[1] > size.max_positions:
            raise UserError(
                f"texts have {texts.shape[1]} tokens; the model has {size.max_positions} positions: cut them"
            )
        if texts.size and not (texts.min() >= 0 and texts.max() < size.vocabulary_size):
            raise UserError(
                f"input_ids run from {texts.min()} to {texts.max()}; the model has {size.vocabulary_size} tokens: "
                "use its own vocabulary"
            )
        return texts.astype(np.int32), np.asarray(attention_mask).astype(bool)

    def match(self, images: Images, texts: Texts) -> np.ndarray:
        """Match probability [b] of images and texts, pair by pair; a single one is paired with each of the others.

        Raises:
            UserError: neither is single and their numbers differ, or the model has no cross encoders.
        """
        input_ids, mask = self.token_ids(texts)
        image, text = self.encode_image(images), self._in_batches(self._encode_text, input_ids, mask)
        counts = {len(image.tokens), len(text.tokens)}
        if len(counts - {1}) > 1:
            raise UserError(
                f"{len(image.tokens)} images and {len(text.tokens)} texts; expected as many of both, or one of either"
            )
        pairs = max(counts)
        each = [np.arange(pairs) % len(tokens) for tokens in (image.tokens, text.tokens)]
        return self.match_tokens(np.asarray(image.tokens)[each[0]], np.asarray(text.tokens)[each[1]], mask[each[1]])

    def match_tokens(self, image_tokens: np.ndarray, text_tokens: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Match probability [b], the mean of both cross encoders, of tokens that the towers gave, pair by pair.

        Args:
            image_tokens: [b n d]. text_tokens: [b l d]. attention_mask: [b l].

        Raises:
            UserError: the numbers of rows differ, or the model has no cross encoders.
        """
        if not self.matches:
            raise UserError("the model has no cross encoders (PRD2): compare embeddings instead")
        if not len(image_tokens) == len(text_tokens) == len(attention_mask):
            raise UserError(
                f"{len(image_tokens)} rows of image tokens, {len(text_tokens)} of text tokens, {len(attention_mask)} "
                "of attention_mask; expected as many of each"
            )
        return self._in_batches(self._match, image_tokens, text_tokens, np.asarray(attention_mask).astype(bool))

    @property
    def matches(self) -> bool:
        """Whether the model has cross encoders."""
        return self._model.module.matching

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's vocabulary.

        Raises:
            UserError: the model came without a vocabulary.
        """
        if self._tokenizer is None:
            if self._model.vocabulary is None:
                raise UserError("the model came without a vocabulary: give its vocab.txt, or encode input_ids")
            length = self.config.text.text_length
            self._tokenizer = tokenizer_of(self._model.vocabulary, length, map_punctuation=self._map_punctuation)
        return self._tokenizer

    def _square(self, image: OneImage) -> np.ndarray:
        side = self.config.image.image_size
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(f"an image is {image.dtype} {list(image.shape)}; expected uint8 [h w 3]")
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return square_image(image, side)
        try:
            return evaluation_image(Path(image).expanduser().read_bytes(), side)
        except (OSError, UnusableRecord) as error:
            raise UserError(f"image {image}: {error}; name a complete image file") from error

    def _in_batches(self, forward: Callable[..., Tree], *rows: np.ndarray) -> Any:
        """Runs a forward over the rows, each batch filled up to a power of two by repeating its first row."""
        parts = []
        for start in range(0, len(rows[0]), self._batch_size):
            batch = [row[start : start + self._batch_size] for row in rows]
            count = len(batch[0])
            bucket = min(self._batch_size, 1 << (count - 1).bit_length())
            filled = [np.concatenate([part, np.repeat(part[:1], bucket - count, axis=0)]) for part in batch]
            result = forward(self._params, *filled)
            parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf, np.float32)[:count], result))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
