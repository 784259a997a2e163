"""A split through the towers, and pairs of it through the cross encoders, in fixed batches over the mesh."""

import logging
from dataclasses import dataclass

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh

from r2d2_jax.arrays import Params
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.encoder import Encoder, Keep, Tokens
from r2d2_jax.evaluation.memory import TOKEN_BYTES_PER_DEVICE
from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.sharding import check_batch_divides

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedSplit:
    """A split's images and captions as the towers see them; embeddings are the same on every process.

    image_embed [i e], text_embed [t e], attention_mask [t l], pairs int32 [p 2] of (image, text), in host memory.
    image_tokens [i n d], text_tokens [t l d]; None if they were not kept.
    """

    image_tokens: Tokens | None
    image_embed: np.ndarray
    text_tokens: Tokens | None
    text_embed: np.ndarray
    attention_mask: np.ndarray
    pairs: np.ndarray


class Scorer:
    """Encodes splits and matches pairs with one model on one mesh.

    Args:
        model: the Linen module.
        mesh: the devices.
        batch_size: rows per forward.

    Raises:
        UserError: the mesh does not divide the batch size.
    """

    def __init__(self, model: R2D2, mesh: Mesh, batch_size: int) -> None:
        check_batch_divides(batch_size, mesh, "evaluation.batch_size")
        self._encoder, self._model, self._announced = Encoder(model, mesh, batch_size), model, False

    @property
    def encoder(self) -> Encoder:
        """The compiled forwards, for those who feed them with rows of their own."""
        return self._encoder

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self._model.config

    @property
    def matches(self) -> bool:
        """Whether the model has cross encoders."""
        return self._model.matching

    def announce(self) -> None:
        """Says once, before the first forward, that it is compiled: that takes minutes for a large model."""
        if not self._announced and jax.process_index() == 0:
            logger.info("compiling the model's forwards for batches of %d", self._encoder.batch_size)
        self._announced = True

    def encode(self, params: Params, split: EvaluationSplit, *, keep_tokens: bool) -> EncodedSplit:
        """Encodes every image and every caption of a split.

        Args:
            params: the model's parameters.
            split: the split.
            keep_tokens: keep what the cross encoders need, too.
        """
        self.announce()
        keep, encoder = self._kept(split) if keep_tokens else Keep.NOTHING, self._encoder
        batches = split.image_batches(encoder.batch_size, encoder.own_rows())
        image = encoder.encode_images(params, batches, split.num_images, keep)
        text = encoder.encode_texts(params, split.input_ids, split.attention_mask, keep)
        return EncodedSplit(image.tokens, image.embed, text.tokens, text.embed, split.attention_mask, split.pairs)

    def match(self, params: Params, encoded: EncodedSplit, pairs: np.ndarray) -> np.ndarray:
        """Match probability [p] of pairs int [p 2] of (image, text) of a split that was encoded with its tokens."""
        if encoded.image_tokens is None or encoded.text_tokens is None:
            raise ValueError("the split was encoded without its tokens, which the cross encoders read")
        tokens = encoded.image_tokens, encoded.text_tokens
        return self._encoder.match(params, *tokens, encoded.attention_mask, pairs)

    def _kept(self, split: EvaluationSplit) -> Keep:
        """On the devices if the tokens of the split fit there."""
        image, text = self.config.image, self.config.text
        numbers = split.num_images * (image.patches + 1) * image.width + split.input_ids.size * text.width
        size = numbers * jnp.dtype(self.config.dtype).itemsize
        return Keep.ON_DEVICES if size <= TOKEN_BYTES_PER_DEVICE * self._encoder.mesh.size else Keep.ON_HOST
