"""The cross encoders: BERT layers with a cross-attention between self-attention and MLP."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Bool, Float, Int, checked
from r2d2_jax.config.model import CrossEncoderConfig
from r2d2_jax.models.bert import EPSILON
from r2d2_jax.models.layers import Attention, LayerNorm, Mlp, erf_gelu, scanned


class CrossLayer(nn.Module):
    """One post-norm layer: self-attention, cross-attention over the other modality, MLP; dropout before each sum."""

    config: CrossEncoderConfig
    dtype: Any

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        mask: jax.Array | None,
        context: jax.Array,
        context_mask: jax.Array | None,
        wanted_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        size = self.config
        queries = hidden
        if wanted_positions is not None:
            queries = jnp.take_along_axis(hidden, wanted_positions[..., None], axis=1)
        attention = partial(Attention, size.width, size.heads, self.dtype, size.dropout)
        mixed = attention(name="self_attention")(queries, hidden, mask)
        queries = LayerNorm(EPSILON, name="self_attention_norm")(queries + mixed)
        mixed = attention(name="cross_attention")(queries, context, context_mask)
        queries = LayerNorm(EPSILON, name="cross_attention_norm")(queries + mixed)
        mixed = Mlp(size.width, size.mlp_width, erf_gelu, self.dtype, size.dropout, name="mlp")(queries)
        return LayerNorm(EPSILON, name="mlp_norm")(queries + mixed), None


class CrossEncoder(nn.Module):
    """A stack of cross layers, fed with tower tokens directly: no embeddings of its own.

    The last layer stands apart from the scanned ones because it is computed only for the tokens that the caller wants.

    Attributes:
        config: the sizes.
        dtype: the dtype of the matrix products.
        remat, unroll: see `layers.scanned`.
    """

    config: CrossEncoderConfig
    dtype: Any
    remat: bool = False
    unroll: bool = False

    @nn.compact
    @checked
    def __call__(
        self,
        tokens: Float[Array, "b q d"],
        mask: Bool[Array, "b q"] | None,
        context: Float[Array, "b c context_d"],
        context_mask: Bool[Array, "b c"] | None,
        wanted_positions: Int[Array, "b r"] | None = None,
    ) -> Float[Array, "b r d"]:
        """Lets `tokens` read `context`.

        Args:
            tokens: the queries.
            mask: False on padded tokens; None when there are none.
            context: keys and values.
            context_mask: False on padded context; None when there is none.
            wanted_positions: of the tokens whose last hidden state is wanted; None means all of them, in order.

        Returns:
            The last hidden states of the wanted tokens.
        """
        inputs = (mask, context, context_mask)
        if self.config.layers > 1:
            stack = scanned(CrossLayer, self.config.layers - 1, remat=self.remat, unroll=self.unroll)
            tokens, _ = stack(self.config, self.dtype, name="layers")(tokens, *inputs)
        last = nn.remat(CrossLayer, prevent_cse=False) if self.remat else CrossLayer
        return last(self.config, self.dtype, name="last_layer")(tokens, *inputs, wanted_positions)[0]
