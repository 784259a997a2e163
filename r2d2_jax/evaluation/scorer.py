"""Compiled forwards for evaluation: images, texts and pairs in fixed batches over the mesh."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r2d2_jax.arrays import Encoded, Params
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import R2D2, normalise_images
from r2d2_jax.sharding import apply_by_rows, batch_sharding, check_batch_divides, replicated

# Batches on their way at once: one is computed while the host prepares the next or takes in the last. More would only
# fill the device's memory with inputs that wait.
IN_FLIGHT = 2


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
    """Forwards of one model on one mesh, each compiled once (the towers' once more if tokens are wanted, too).

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

        def image_forward(params: Params, images: jax.Array, keep_tokens: bool) -> tuple[jax.Array, jax.Array]:
            return _kept(apply_by_rows(model, params, mesh, "encode_image", normalise_images(images)), keep_tokens)

        def text_forward(
            params: Params, input_ids: jax.Array, mask: jax.Array, keep_tokens: bool
        ) -> tuple[jax.Array, jax.Array]:
            return _kept(apply_by_rows(model, params, mesh, "encode_text", input_ids, mask), keep_tokens)

        def pair_forward(params: Params, text: jax.Array, mask: jax.Array, image: jax.Array) -> jax.Array:
            return match_probability(apply_by_rows(model, params, mesh, "match", text, mask, image))

        # Every process gets everything, since each ranks for itself.
        compiled = partial(jax.jit, out_shardings=replicated(mesh))
        self._image_forward = compiled(image_forward, static_argnames="keep_tokens")
        self._text_forward = compiled(text_forward, static_argnames="keep_tokens")
        self._pair_forward = compiled(pair_forward)

    def encode(self, params: Params, split: EvaluationSplit, *, keep_tokens: bool) -> EncodedSplit:
        """Encodes every image and every caption of a split.

        Args:
            params: the model's parameters.
            split: the split.
            keep_tokens: keep what the cross encoders need, too.
        """
        images = (
            self._image_forward(params, self._placed(rows), keep_tokens=keep_tokens)
            for rows in split.image_batches(self._batch_size, self._own_rows())
        )
        texts = (
            self._text_forward(params, self._placed(ids), self._placed(mask), keep_tokens=keep_tokens)
            for ids, mask in zip(self._batches(split.input_ids), self._batches(split.attention_mask), strict=True)
        )
        image_tokens, image_embed = _joined(images, split.num_images)
        text_tokens, text_embed = _joined(texts, len(split.captions))
        return EncodedSplit(
            image_tokens, image_embed, text_tokens, text_embed, split.attention_mask, split.caption_image
        )

    def match(self, params: Params, encoded: EncodedSplit, pairs: np.ndarray) -> np.ndarray:
        """Match probability [p] of pairs int [p 2] of (image, text)."""
        probabilities = (
            self._pair_forward(params, *map(self._placed, _pair_rows(encoded, batch))) for batch in self._batches(pairs)
        )
        return np.concatenate(list(_fetched(probabilities)))[: len(pairs)]

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Full batches; the last is filled up by repeating the first row."""
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            missing = self._batch_size - len(batch)
            yield np.concatenate([batch, np.repeat(rows[:1], missing, axis=0)]) if missing else batch

    def _placed(self, rows: np.ndarray) -> jax.Array:
        """A global array of rows of which every process holds at least those of its devices."""
        return jax.make_array_from_callback(rows.shape, batch_sharding(self._mesh), lambda index: rows[index])

    def _own_rows(self) -> np.ndarray:
        """bool [b], True where a row of a batch lies on a device of this process."""
        own = np.zeros(self._batch_size, bool)
        for rows in batch_sharding(self._mesh).addressable_devices_indices_map(own.shape).values():
            own[rows] = True
        return own


def _kept(encoded: Encoded, keep_tokens: bool) -> tuple[jax.Array, jax.Array]:
    """Tokens, [b 0] if they are not wanted, and embeddings: what nobody asked for never leaves its device."""
    return encoded.tokens if keep_tokens else jnp.zeros((len(encoded.embed), 0)), encoded.embed


def _pair_rows(encoded: EncodedSplit, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the cross encoders read for pairs int [b 2] of (image, text)."""
    image, text = pairs.T
    return encoded.text_tokens[text], encoded.attention_mask[text], encoded.image_tokens[image]


def _joined(dispatched: Iterable[tuple[jax.Array, ...]], count: int) -> Iterator[np.ndarray]:
    """The first so many rows, over all batches, of each array of a forward."""
    return (np.concatenate(parts)[:count] for parts in zip(*_fetched(dispatched), strict=True))


def _fetched(dispatched: Iterable[Any]) -> Iterator[Any]:
    """Brings results to the host, each after the next is dispatched, so that host and devices work at the same time."""
    waiting: deque[Any] = deque()
    for result in dispatched:
        waiting.append(result)
        if len(waiting) == IN_FLIGHT:
            yield jax.device_get(waiting.popleft())
    yield from map(jax.device_get, waiting)
