"""Global contrastive pre-ranking (GCPR): cross-entropy of similarities over all devices' candidates."""

import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Bool, Float, checked, exact_if_float32


@checked
def similarity(row_embed: Float[Array, "b e"], key_embed: Float[Array, "m e"]) -> Float[Array, "b m"]:
    """Cosine similarity of unit-norm rows and keys, in exact float32."""
    return jnp.einsum("be,me->bm", row_embed, key_embed, precision=exact_if_float32(row_embed.dtype))


@checked
def similarity_logits(
    row_embed: Float[Array, "b e"], key_embed: Float[Array, "m e"], temperature: Float[Array, ""]
) -> Float[Array, "b m"]:
    """Similarity / temperature."""
    return similarity(row_embed, key_embed) / temperature


@checked
def ground_truth(positive: Bool[Array, "b m"]) -> Float[Array, "b m"]:
    """The target that shares the mass of each row equally among its positives.

    Pairs that show the same image are each other's positives (published code), and so are pairs of the same text (our
    decision). Every row needs at least one.
    """
    mass = positive.astype(jnp.float32)
    return mass / jnp.sum(mass, axis=1, keepdims=True)


@checked
def weighted_cross_entropy(
    logits: Float[Array, "b m"],
    target: Float[Array, "b m"],
    weight: Float[Array, " m"],
    valid: Bool[Array, " m"],
) -> Float[Array, " b"]:
    """-sum_j w_j * target_ij * log_softmax(logits)_ij over the valid keys j, for each row i.

    With every weight 1 this is GCPR's softmax cross-entropy; the weights are those of target-guided distillation's
    queue (article; that they multiply the terms of the sum is our decision).

    Args:
        logits: similarity / temperature.
        target: each row sums to one over the valid keys.
        weight: of each key, in [0, 1].
        valid: False on unfilled keys, which enter neither the sum nor the softmax.
    """
    log_probability = jax.nn.log_softmax(jnp.where(valid, logits, -jnp.inf), axis=1)
    terms = jnp.where(valid, weight * target * log_probability, 0.0)
    return -jnp.sum(terms, axis=1)


@checked
def gcpr(i2t: Float[Array, "b m"], t2i: Float[Array, "b m"], positive: Bool[Array, "b m"]) -> Float[Array, " b"]:
    """Global contrastive pre-ranking: the mean of the i2t and the t2i cross-entropy (article).

    The loss is the mean over all rows, of which these may be a part.

    Args:
        i2t: similarity / temperature of images and all texts of the global batch. t2i: of texts and all images.
        positive: True where row and column belong together; every row needs at least one.
    """
    every_key = jnp.ones(i2t.shape[1], bool)
    target, weight = ground_truth(positive), jnp.ones(i2t.shape[1])
    losses = [weighted_cross_entropy(logits, target, weight, every_key) for logits in (i2t, t2i)]
    return jnp.mean(jnp.stack(losses), axis=0)
