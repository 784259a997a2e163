"""The two distillations: target-guided (TgD, over candidates) and feature-guided (FgD, over the feature axis)."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from r2d2_jax.arrays import Array, Bool, Float, Int, checked, unit_norm
from r2d2_jax.losses.contrastive import ground_truth, similarity_logits, weighted_cross_entropy


@struct.dataclass
class Candidates:
    """The keys of target-guided distillation: the teacher's embeddings of the global batch, then the queue.

    image_embed, text_embed: float32 [m e], unit-norm, without gradient.
    weight: float32 [m]; 1 for the batch, the queue's weights after it.
    valid: bool [m]; False on unfilled queue slots.
    """

    image_embed: jax.Array
    text_embed: jax.Array
    weight: jax.Array
    valid: jax.Array


@checked
def soft_target(
    teacher_embed: Float[Array, "b e"],
    key_embed: Float[Array, "m e"],
    positive: Bool[Array, "b m"],
    valid: Bool[Array, " m"],
    temperature: Float[Array, ""],
    share: Float[Array, ""],
) -> Float[Array, "b m"]:
    """share * softmax(teacher similarity / temperature) + (1 - share) * ground truth, without gradient (article).

    Args:
        teacher_embed: the teacher's embeddings of the rows, unit-norm.
        key_embed: the candidates.
        positive: True where row and candidate belong together.
        valid: False on unfilled candidates, whose target is zero.
        temperature: a positive scalar.
        share: alpha in [0, 1].
    """
    logits = jnp.where(valid, similarity_logits(teacher_embed, key_embed, temperature), -jnp.inf)
    teacher = jax.nn.softmax(logits, axis=1)
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

    Args:
        image_embed, text_embed: the student's, unit-norm.
        teacher_image_embed, teacher_text_embed: the teacher's of the same rows, unit-norm; receive no gradient.
        candidates: the keys.
        positive: True where row and candidate belong together.
        temperature: a positive scalar; learns through the student's logits only.
        share: alpha in [0, 1], the teacher's share of the target.
    """
    keys = jax.lax.stop_gradient(candidates)
    fixed_temperature = jax.lax.stop_gradient(temperature)

    def one_direction(row: jax.Array, teacher_row: jax.Array, key_embed: jax.Array) -> jax.Array:
        target = soft_target(teacher_row, key_embed, positive, keys.valid, fixed_temperature, share)
        logits = similarity_logits(row, key_embed, temperature)
        return weighted_cross_entropy(logits, target, keys.weight, keys.valid)

    i2t = one_direction(image_embed, teacher_image_embed, keys.text_embed)
    t2i = one_direction(text_embed, teacher_text_embed, keys.image_embed)
    return (i2t + t2i) / 2


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
