"""Compiled forwards for evaluation: images, texts and pairs in fixed batches over the mesh."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r2d2_jax.arrays import Encoded
from r2d2_jax.data.pipeline import EvaluationSplit
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import R2D2, normalise_images
from r2d2_jax.sharding import batch_sharding, check_batch_divides, replicated
from r2d2_jax.train.state import Params


@dataclass(frozen=True)
class EncodedSplit:
    """A split's images and captions as the towers see them, in host memory, the same on every process.

    image_tokens [i n d], image_embed [i e]; text_tokens [t l d], text_embed [t e], attention_mask [t l];
    caption_image int32 [t]. Tokens are empty when they were not asked for.
    """

    image_tokens: np.ndarray
    image_embed: np.ndarray
    text_tokens: np.ndarray
    text_embed: np.ndarray
    attention_mask: np.ndarray
    caption_image: np.ndarray


class Scorer:
    """Forwards of one model on one mesh, each compiled once.

    Args:
        model: the Linen module.
        mesh: the devices.
        batch_size: rows per forward.

    Raises:
        UserError: the mesh does not divide the batch size.
    """

    def __init__(self, model: R2D2, mesh: Mesh, batch_size: int) -> None:
        check_batch_divides(batch_size, mesh, "evaluation.batch_size")
        self._mesh, self._batch_size = mesh, batch_size
        whole = replicated(mesh)

        def image_forward(params: Params, images: jax.Array) -> Any:
            return model.apply({"params": params}, normalise_images(images), method="encode_image")

        def text_forward(params: Params, input_ids: jax.Array, mask: jax.Array) -> Any:
            return model.apply({"params": params}, input_ids, mask, method="encode_text")

        def pair_forward(params: Params, text: jax.Array, mask: jax.Array, image: jax.Array) -> jax.Array:
            logits: Any = model.apply({"params": params}, text, mask, image, method="match")
            return match_probability(logits)

        self._image_forward = jax.jit(image_forward, out_shardings=whole)
        self._text_forward = jax.jit(text_forward, out_shardings=whole)
        self._pair_forward = jax.jit(pair_forward, out_shardings=whole)

    def encode(self, params: Params, split: EvaluationSplit, *, keep_tokens: bool) -> EncodedSplit:
        """Encodes every image and every caption of a split.

        Args:
            params: the model's parameters.
            split: the split.
            keep_tokens: keep what the cross encoders need, too.
        """
        counts = split.num_images, len(split.captions)
        images = [
            self._fetched(self._image_forward(params, self._placed(rows)), keep_tokens)
            for rows in split.image_batches(self._batch_size)
        ]
        texts = [
            self._fetched(self._text_forward(params, self._placed(ids), self._placed(mask)), keep_tokens)
            for ids, mask in zip(self._batches(split.input_ids), self._batches(split.attention_mask), strict=True)
        ]
        image_tokens, image_embed = (np.concatenate(parts)[: counts[0]] for parts in zip(*images, strict=True))
        text_tokens, text_embed = (np.concatenate(parts)[: counts[1]] for parts in zip(*texts, strict=True))
        return EncodedSplit(
            image_tokens, image_embed, text_tokens, text_embed, split.attention_mask, split.caption_image
        )

    def match(self, params: Params, encoded: EncodedSplit, pairs: np.ndarray) -> np.ndarray:
        """Match probability [p] of pairs int [p 2] of (image, text)."""
        probabilities = []
        for batch in self._batches(pairs):
            image, text = batch[:, 0], batch[:, 1]
            rows = (encoded.text_tokens[text], encoded.attention_mask[text], encoded.image_tokens[image])
            probabilities.append(self._pair_forward(params, *(self._placed(part) for part in rows)))
        return np.concatenate([np.asarray(part) for part in probabilities])[: len(pairs)]

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Full batches; the last is filled up by repeating the first row."""
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            missing = self._batch_size - len(batch)
            yield np.concatenate([batch, np.repeat(rows[:1], missing, axis=0)]) if missing else batch

    def _placed(self, rows: np.ndarray) -> jax.Array:
        """A global array of rows that every process holds; each device takes its own."""
        return jax.make_array_from_callback(rows.shape, batch_sharding(self._mesh), lambda index: rows[index])

    def _fetched(self, encoded: Encoded, keep_tokens: bool) -> tuple[np.ndarray, np.ndarray]:
        tokens = encoded.tokens if keep_tokens else jnp.zeros((len(encoded.embed), 0))
        return np.asarray(tokens), np.asarray(encoded.embed)
