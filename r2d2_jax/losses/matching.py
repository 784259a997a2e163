"""Two-way match classification: fine-grained ranking (FGR) with its hard negatives, and labelled pairs."""

import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Bool, Float, Int, checked


@checked
def negative_logits(logits: Float[Array, "b m"], positive: Bool[Array, "b m"]) -> Float[Array, "b m"]:
    """Log-weights from which hard negatives are drawn: the similarity logits, -inf where the two belong together.

    Their row-softmax is the published sampling weight. Kept as logarithms, so that negatives of vanishing weight can
    still be drawn when nothing better is left; the published code fails there.
    """
    return jnp.where(positive, -jnp.inf, logits)


@checked
def sample_negatives(
    key: jax.Array, logits: Float[Array, "b m"], positive: Bool[Array, "b m"], row: Int[Array, " b"]
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Draws one hard negative per row from the row-softmax of the logits over all that do not belong together.

    Args:
        key: random key.
        logits: similarity / temperature of rows and the whole global batch.
        positive: True where row and column belong together.
        row: the number of each row in the global batch, with which the key gives it draws of its own: the same ones,
            whichever rows are drawn for with it.

    Returns:
        The drawn columns, and whether the row has any negative at all. A row without one gets an arbitrary column.
    """
    # A row of nothing but -inf has no distribution; it draws from the plain logits, and `exists` marks it.
    exists = jnp.any(~positive, axis=1)
    weights = jnp.where(exists[:, None], negative_logits(logits, positive), logits)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row)
    return jax.vmap(jax.random.categorical)(keys, weights), exists


@checked
def match_loss(
    logits: Float[Array, "b c 2"],
    label: Bool[Array, " b"],
    has_negative: Bool[Array, " b"],
    class_weights: tuple[float, float],
) -> Float[Array, ""]:
    """Class-weighted cross-entropy, averaged over the c cross encoders (published code).

    loss = mean_c( sum_i w_i * -log_softmax(logits_ic)[label_i] / sum_i w_i ), w_i the weight of the label's class.

    Args:
        logits: of (no match, match) on the last axis.
        label: True where image and text belong together.
        has_negative: False on rows that take no part, because their pair has no negative in the whole batch.
        class_weights: of (no match, match); the published values are (1, 2).
    """
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.where(label[:, None], log_probability[..., 1], log_probability[..., 0])
    weight = jnp.where(label, class_weights[1], class_weights[0]) * has_negative
    return -jnp.sum(weight[:, None] * chosen) / (jnp.sum(weight) * logits.shape[1])


@checked
def softmax_twice_loss(logits: Float[Array, "b c 2"], label: Bool[Array, " b"]) -> Float[Array, ""]:
    """Cross-entropy that takes the averaged probabilities for logits (published code, fine-tuning for matching).

    loss = mean_i( -log_softmax( mean_c softmax(logits_ic) )[label_i] ). A softmax of numbers within [0, 1] never comes
    near 0 or 1, so the loss stays above log(1 + 1/e) = 0.313 and its gradient vanishes where the model is surely wrong.

    Args:
        logits: of (no match, match) on the last axis, of c cross encoders.
        label: True where image and text belong together.
    """
    probability = jnp.mean(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=1)
    log_probability = jax.nn.log_softmax(probability, axis=-1)
    return -jnp.mean(jnp.where(label, log_probability[:, 1], log_probability[:, 0]))


@checked
def match_probability(logits: Float[Array, "b c 2"]) -> Float[Array, " b"]:
    """The mean of the cross encoders' probability that a pair matches (published code)."""
    return jnp.mean(jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., 1], axis=1)
