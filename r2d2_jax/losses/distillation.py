"""The two distillations: target-guided (TgD, over candidates) and feature-guided (FgD, over the feature axis)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r2d2_jax.arrays import Array, Bool, Float, Int, checked, unit_norm
from r2d2_jax.losses.contrastive import ground_truth, similarity, weighted_cross_entropy


@struct.dataclass
class Candidates:
    """The keys of target-guided distillation: the teacher's embeddings of the global batch, then the queue.

    image_embed, text_embed: float32 [m_1 e], [m_2 e] and so on, unit-norm, without gradient. They stay apart, because
        joined they would lie in memory twice; their similarities [b m] are joined, m being the sum of m_1, m_2, ...
    weight: float32 [m]; 1 for the batch, the queue's weights after it.
    valid: bool [m]; False on unfilled queue slots.
    """

    image_embed: tuple[jax.Array, ...]
    text_embed: tuple[jax.Array, ...]
    weight: jax.Array
    valid: jax.Array


@checked
def candidate_similarity(row_embed: Float[Array, "b e"], key_embeds: tuple[jax.Array, ...]) -> Float[Array, "b m"]:
    """Cosine similarity of rows with all candidates, see `Candidates`."""
    return jnp.concatenate([similarity(row_embed, keys) for keys in key_embeds], axis=1)


@checked
def soft_target(
    logits: Float[Array, "b m"], positive: Bool[Array, "b m"], valid: Bool[Array, " m"], share: Float[Array, ""]
) -> Float[Array, "b m"]:
    """share * softmax(teacher similarity / temperature) + (1 - share) * ground truth, without gradient (article).

    Args:
        logits: the teacher's similarity / temperature of rows and candidates.
        positive: True where row and candidate belong together.
        valid: False on unfilled candidates, whose target is zero.
        share: alpha in [0, 1].
    """
    teacher = jax.nn.softmax(jnp.where(valid, logits, -jnp.inf), axis=1)
    return jax.lax.stop_gradient(share * teacher + (1 - share) * ground_truth(positive & valid))


@checked
def tgd(
    image_embed: Float[Array, "b e"],
    text_embed: Float[Array, "b e"],
    teacher_image_embed: Float[Array, "b e"],
    teacher_text_embed: Float[Array, "b e"],
    candidates: Candidates,
    positive: Bool[Array, "b m"],
    temperature: Float[Array, ""],
    share: Float[Array, ""],
) -> Float[Array, " b"]:
    """Target-guided distillation: GCPR over teacher keys and queue, with soft targets and weighted terms (article).

    loss_i = mean over both directions of -sum_j w_j * target_ij * log_softmax(s_ij / temperature), where s_ij is the
    similarity of student row i and teacher key j. The loss is the mean over all rows, of which these may be a part.

    The forward pass computes the gradient, too: so between it and the backward pass stay [b e] numbers alone, not the
    [b m] similarities and the candidates from which they are made (our decision).

    Args:
        image_embed, text_embed: the student's, unit-norm.
        teacher_image_embed, teacher_text_embed: the teacher's of the same rows, unit-norm; receive no gradient.
        candidates: the keys.
        positive: True where row and candidate belong together.
        temperature: a positive scalar; learns through the student's logits only.
        share: alpha in [0, 1], the teacher's share of the target.
    """
    fixed = (teacher_image_embed, teacher_text_embed, candidates, positive, temperature, share)
    return _differentiated_losses((image_embed, text_embed, jnp.broadcast_to(temperature, len(image_embed))), fixed)


def _losses(trained: tuple[jax.Array, ...], fixed: tuple[Any, ...]) -> jax.Array:
    """Those of `tgd`.

    Args:
        trained: image_embed, text_embed and, for each row, the temperature: what has a gradient.
        fixed: the other arguments of `tgd`, in their order, and again the temperature in its place.
    """
    image_embed, text_embed, temperature = trained
    teacher_image_embed, teacher_text_embed, keys, positive, fixed_temperature, share = fixed

    def one_direction(row: jax.Array, teacher_row: jax.Array, key_embeds: tuple[jax.Array, ...]) -> jax.Array:
        teacher_logits = candidate_similarity(teacher_row, key_embeds) / fixed_temperature
        target = soft_target(teacher_logits, positive, keys.valid, share)
        logits = candidate_similarity(row, key_embeds) / temperature[:, None]
        return weighted_cross_entropy(logits, target, keys.weight, keys.valid)

    i2t = one_direction(image_embed, teacher_image_embed, keys.text_embed)
    t2i = one_direction(text_embed, teacher_text_embed, keys.image_embed)
    return (i2t + t2i) / 2


def _losses_and_gradients(trained: tuple[jax.Array, ...], fixed: tuple[Any, ...]) -> tuple[jax.Array, Any]:
    losses, gradients = jax.vjp(lambda trained: _losses(trained, fixed), trained)
    return losses, gradients(jnp.ones_like(losses))[0]  # row i of the losses reads row i of `trained` alone


def _scaled(gradients: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[Any, None]:
    return tuple(jax.vmap(jnp.multiply)(cotangent, gradient) for gradient in gradients), None


_differentiated_losses = jax.custom_vjp(_losses)
_differentiated_losses.defvjp(_losses_and_gradients, _scaled)


@checked
def distilled_feature(feature: Float[Array, "b e"], form: str) -> Float[Array, "b e"]:
    """What feature-guided distillation takes the softmax of (our decision; docs/method.md has the evidence).

    Args:
        feature: projected, before normalisation.
        form: "layer_norm", (f - mean(f)) / deviation(f) over the features, so that the temperatures alone say how sharp
            the softmax is, at any width and at any length of f; "unit", f / |f|; "projected", f itself.
    """
    if form == "layer_norm":
        centred = feature - jnp.mean(feature, axis=1, keepdims=True)
        return unit_norm(centred) * math.sqrt(feature.shape[1])
    return unit_norm(feature) if form == "unit" else feature


@checked
def fgd(
    student_feature: Float[Array, "b e"],
    teacher_feature: Float[Array, "b e"],
    feature_mean: Float[Array, " e"],
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Array, ""]:
    """Feature-guided distillation: cross-entropy over the feature axis (article; form and values are our decision).

    loss = mean_i( -sum_c softmax((f_t - mu) / tau_t)_ic * log_softmax(f_s / tau_s)_ic )

    Args:
        student_feature: features of the masked text, see `distilled_feature`.
        teacher_feature: the same of the complete text, from the teacher; receives no gradient.
        feature_mean: mu, the running mean of teacher features.
        student_temperature, teacher_temperature: tau_s and tau_t, positive.
    """
    target = jax.nn.softmax((teacher_feature - feature_mean) / teacher_temperature, axis=1)
    log_probability = jax.nn.log_softmax(student_feature / student_temperature, axis=1)
    return -jnp.mean(jnp.sum(jax.lax.stop_gradient(target) * log_probability, axis=1))


@checked
def running_mean(
    feature_mean: Float[Array, " e"], teacher_feature: Float[Array, "b e"], step: Int[Array, ""], momentum: float
) -> Float[Array, " e"]:
    """mu <- m * mu + (1 - m) * mean of the global batch's teacher features, with m = min(momentum, step / (step + 1)).

    The first batches are averaged evenly, so that the mean is never drawn towards its arbitrary first value (our
    decision).
    """
    share = jnp.minimum(momentum, step / (step + 1))
    return share * feature_mean + (1 - share) * jnp.mean(teacher_feature, axis=0)
