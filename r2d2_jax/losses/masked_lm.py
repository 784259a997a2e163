"""Masked language modelling: which tokens are masked, and the loss on them."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from r2d2_jax.arrays import Array, Bool, Float, Int, checked

# The longest word that is masked whole where the share leaves fewer slots: nearly every Chinese word is shorter, and so
# are most names and numbers (our decision).
LONGEST_WORD = 8


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


def word_slots(text_length: int, mask_share: float) -> int:
    """The largest number of tokens that `mask_words` masks in a text: room for the share, and for one longer word."""
    return max(mask_slots(text_length, mask_share), min(LONGEST_WORD, text_length - 2))


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
    count = jnp.minimum(_budget(available, mask_share), available)
    lottery = jnp.where(maskable, jax.random.uniform(key, input_ids.shape), -1.0)
    _, position = jax.lax.top_k(lottery, slots)
    return _masked_at(input_ids, position, jnp.arange(slots) < count[:, None], mask_id)


@checked
def mask_words(
    key: jax.Array,
    input_ids: Int[Array, "b l"],
    maskable: Bool[Array, "b l"],
    word: Int[Array, "b l"],
    mask_id: int,
    mask_share: float,
) -> MaskedText:
    """Replaces whole words of each text by [MASK], for about the share of its tokens that `mask_tokens` masks.

    The words of a text with c maskable tokens are gone through in random order, each order as likely as any other. The
    first is masked whatever its length; each later one if with it no more than max(1, round(c * mask_share)) tokens are
    masked, else it is left out. Leaving out is what BERT's whole-word masking does with every word; it was made for
    texts of 512 tokens. In captions of ten a longer word would never be masked, so the first always is (our decision).
    A word of more than s = `word_slots(l, mask_share)` tokens has its first s masked.

    Args:
        key: random key.
        input_ids: the complete texts.
        maskable: False on CLS, SEP and padding.
        word: which word of its text each token belongs to, from 0 to l - 1; not read where `maskable` is False.
        mask_id: the token id of [MASK].
        mask_share: share of the maskable tokens, in (0, 1).
    """
    slots = word_slots(input_ids.shape[1], mask_share)
    size = jnp.sum((word[:, None, :] == jnp.arange(word.shape[1])[:, None]) & maskable[:, None, :], axis=2)
    lottery = jnp.where(size > 0, jax.random.uniform(key, input_ids.shape), -1.0)
    drawn = _drawn_words(lottery, size, _budget(jnp.sum(maskable, axis=1), mask_share), slots)
    hidden = jnp.take_along_axis(drawn, jnp.clip(word, 0), axis=1) & maskable
    first, position = jax.lax.top_k(hidden.astype(jnp.int32), slots)  # of equal ones, those in front
    return _masked_at(input_ids, position, first > 0, mask_id)


def _budget(available: jax.Array, mask_share: float) -> jax.Array:
    return jnp.maximum(1, jnp.floor(available * mask_share + 0.5)).astype(jnp.int32)


def _drawn_words(lottery: jax.Array, size: jax.Array, budget: jax.Array, rounds: int) -> jax.Array:
    """Bool [b w], the words that are masked: the first in order of falling `lottery`, and each later one that fits.

    Each round takes the first of those that still fit. A word that was left out never fits later, so this is the same
    as going through all of them; and as a word has a token at least, there are no more rounds than tokens masked.

    Args:
        lottery: float [b w], less than 0 where there is no word.
        size: int [b w], tokens of each word.
        budget: int [b], how many tokens may be masked.
        rounds: the largest number of words that are drawn.
    """
    first = jnp.take_along_axis(size, jnp.argmax(lottery, axis=1, keepdims=True), axis=1)[:, 0]

    def draw(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        drawn, left = carry
        fits = (lottery >= 0) & ~drawn & (size <= left[:, None])
        best = jnp.argmax(jnp.where(fits, lottery, -1.0), axis=1)
        taken = fits & (jnp.arange(size.shape[1]) == best[:, None])
        return drawn | taken, left - jnp.sum(jnp.where(taken, size, 0), axis=1)

    nothing = jnp.zeros(size.shape, bool), jnp.maximum(budget, first)
    return jax.lax.fori_loop(0, rounds, draw, nothing)[0]


def _masked_at(input_ids: jax.Array, position: jax.Array, masked: jax.Array, mask_id: int) -> MaskedText:
    label = jnp.take_along_axis(input_ids, position, axis=1)
    rows = jnp.arange(len(input_ids))[:, None]
    hidden = input_ids.at[rows, position].set(jnp.where(masked, mask_id, label))
    return MaskedText(hidden, position, label, masked)


@checked
def label_logit(logits: Float[Array, "b s v"], label: Int[Array, "b s"]) -> Float[Array, "b s"]:
    """The logit of each label, in float32."""
    return jnp.take_along_axis(logits.astype(jnp.float32), label[..., None], axis=-1)[..., 0]


@checked
def label_log_probability(logits: Float[Array, "b s v"], label: Int[Array, "b s"]) -> Float[Array, "b s"]:
    """log_softmax(logits)[label], in float32, of which no other entry is computed."""
    return label_logit(logits, label) - jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)


@checked
def label_is_best(logits: Float[Array, "b s v"], label: Int[Array, "b s"]) -> Bool[Array, "b s"]:
    """Whether the label alone has the largest logit; never where one is NaN."""
    least = label_logit(logits, label)[..., None]
    return jnp.sum(~(logits < least), axis=-1) == 1  # XLA's argmax takes several times as long on CPUs


@checked
def masked_lm(log_probability: Float[Array, "b s"], masked: Bool[Array, "b s"]) -> Float[Array, ""]:
    """Minus the mean of the labels' log-probabilities over all masked tokens; 0 if nothing is masked."""
    return -jnp.sum(jnp.where(masked, log_probability, 0.0)) / jnp.maximum(jnp.sum(masked), 1)
