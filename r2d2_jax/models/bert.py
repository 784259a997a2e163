"""The text tower: RoBERTa-wwm-ext, which is BERT in every respect that matters here."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Bool, Float, Int, checked, exact_if_float32
from r2d2_jax.config.model import TextTowerConfig
from r2d2_jax.models.dropout import Dropout
from r2d2_jax.models.layers import EMBEDDING_INIT, Attention, LayerNorm, Mlp, cls_of_stack, dense, erf_gelu, scanned

EPSILON = 1e-12  # layer-norm epsilon of BERT (published code)


class BertLayer(nn.Module):
    """One post-norm transformer layer: norm(h + attention(h)), then norm(h + mlp(h)); dropout before each sum.

    With `cls_alone` its result is that of the first token, [b 1 d].
    """

    config: TextTowerConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, attention_mask: jax.Array, cls_alone: bool = False) -> tuple[jax.Array, None]:
        size = self.config
        queries = hidden[:, :1] if cls_alone else hidden
        attention = Attention(size.width, size.heads, self.dtype, size.dropout, name="attention")
        mixed = attention(queries, hidden, attention_mask)
        hidden = LayerNorm(EPSILON, name="attention_norm")(queries + mixed)
        mixed = Mlp(size.width, size.mlp_width, erf_gelu, self.dtype, size.dropout, name="mlp")(hidden)
        return LayerNorm(EPSILON, name="mlp_norm")(hidden + mixed), None


class TextEncoder(nn.Module):
    """BERT with token type 0 throughout.

    Attributes:
        config: the sizes.
        dtype: the dtype of the matrix products.
        remat, unroll: see `layers.scanned`.
    """

    config: TextTowerConfig
    dtype: Any
    remat: str = "none"
    unroll: bool = False

    def setup(self) -> None:
        size = self.config
        self.word_embedding = nn.Embed(size.vocabulary_size, size.width, embedding_init=EMBEDDING_INIT)
        self.position_embedding = nn.Embed(size.max_positions, size.width, embedding_init=EMBEDDING_INIT)
        self.type_embedding = nn.Embed(size.token_types, size.width, embedding_init=EMBEDDING_INIT)
        self.embedding_norm = LayerNorm(EPSILON)
        self.embedding_dropout = Dropout(size.dropout)
        stack = scanned(BertLayer, size.layers, remat=self.remat, unroll=self.unroll)
        self.layers = stack(size, self.dtype)

    @checked
    def __call__(self, input_ids: Int[Array, "b l"], attention_mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """The last hidden state of every token."""
        hidden, _ = self.layers(self._embedded(input_ids), attention_mask)
        return hidden

    @checked
    def cls(self, input_ids: Int[Array, "b l"], attention_mask: Bool[Array, "b l"]) -> Float[Array, "b 1 d"]:
        """The last hidden state of CLS alone; see `layers.cls_of_stack`."""
        layer, stacked = BertLayer(self.config, self.dtype, parent=None), self.variables["params"]["layers"]
        return cls_of_stack(layer, stacked, self._embedded(input_ids), attention_mask, unroll=self.unroll)

    def _embedded(self, input_ids: jax.Array) -> jax.Array:
        length = input_ids.shape[1]
        hidden = self.word_embedding(input_ids) + self.position_embedding(jnp.arange(length))
        hidden = hidden + self.type_embedding(jnp.zeros((1,), jnp.int32))
        return self.embedding_dropout(self.embedding_norm(hidden)).astype(self.dtype)


class MaskedLmHead(nn.Module):
    """BERT's masked-language-model head; the decoder's matrix is the text encoder's word embedding.

    Attributes:
        vocabulary_size: `v`, the size of the bias.
        dtype: the dtype of the matrix products.
    """

    vocabulary_size: int
    dtype: Any

    @nn.compact
    @checked
    def __call__(self, tokens: Float[Array, "b s d"], word_embedding: Float[Array, "v d"]) -> Float[Array, "b s v"]:
        """Vocabulary logits, in float32, of the given tokens."""
        hidden = erf_gelu(dense(tokens.shape[-1], self.dtype, "transform")(tokens))
        hidden = LayerNorm(EPSILON, name="transform_norm")(hidden)
        decoder, exact = word_embedding.astype(self.dtype), exact_if_float32(self.dtype)
        logits = jnp.einsum("bsd,vd->bsv", hidden, decoder, precision=exact, preferred_element_type=jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (self.vocabulary_size,))
