"""Masked language modelling: which tokens are masked, and the loss on them."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from r2d2_jax.arrays import Array, Bool, Float, Int, checked


@struct.dataclass
class MaskedText:
    """Texts with masked tokens, in fixed shapes; `s` is the largest number of tokens masked in any text.

    input_ids: int32 [b l], masked tokens replaced by [MASK].
    position: int32 [b s], where the masked tokens are.
    label: int32 [b s], what they were.
    masked: bool [b s]; False on slots beyond the text's own number of masked tokens.
    """

    input_ids: jax.Array
    position: jax.Array
    label: jax.Array
    masked: jax.Array


def mask_slots(text_length: int, mask_share: float) -> int:
    """The largest number of tokens that `mask_tokens` masks in a text of `text_length` with CLS and SEP."""
    return max(1, math.floor((text_length - 2) * mask_share + 0.5))


@checked
def mask_tokens(
    key: jax.Array,
    input_ids: Int[Array, "b l"],
    maskable: Bool[Array, "b l"],
    mask_id: int,
    mask_share: float,
) -> MaskedText:
    """Replaces a share of each text's tokens by [MASK], all of them (article), at least one (our decision).

    A text with c maskable tokens has max(1, round(c * mask_share)) of them masked, uniformly without replacement; a
    text without any maskable token has none.

    Args:
        key: random key.
        input_ids: the complete texts.
        maskable: False on CLS, SEP and padding.
        mask_id: the token id of [MASK].
        mask_share: share of the maskable tokens, in (0, 1).
    """
    slots = mask_slots(input_ids.shape[1], mask_share)
    available = jnp.sum(maskable, axis=1)
    count = jnp.minimum(jnp.maximum(1, jnp.floor(available * mask_share + 0.5)).astype(jnp.int32), available)
    lottery = jnp.where(maskable, jax.random.uniform(key, input_ids.shape), -1.0)
    _, position = jax.lax.top_k(lottery, slots)
    masked = jnp.arange(slots) < count[:, None]
    label = jnp.take_along_axis(input_ids, position, axis=1)
    rows = jnp.arange(len(input_ids))[:, None]
    hidden = input_ids.at[rows, position].set(jnp.where(masked, mask_id, label))
    return MaskedText(hidden, position, label, masked)


@checked
def masked_lm(
    logits: Float[Array, "b s v"], label: Int[Array, "b s"], masked: Bool[Array, "b s"]
) -> Float[Array, ""]:
    """Mean over all masked tokens of -log_softmax(logits)[label], in float32; 0 if nothing is masked."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probability, label[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(masked, chosen, 0.0)) / jnp.maximum(jnp.sum(masked), 1)
