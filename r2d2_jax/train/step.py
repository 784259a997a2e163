"""One pre-training step, in the order of the article.

student -> teacher -> pre-ranking -> ranking -> masked language modelling -> feature-guided distillation -> gradients ->
optimizer -> teacher average -> queue.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from r2d2_jax.arrays import Batch, Encoded, Params, same_image, unit_norm
from r2d2_jax.losses.contrastive import gcpr, similarity_logits
from r2d2_jax.losses.distillation import Candidates, fgd, followed_mean, tgd
from r2d2_jax.losses.masked_lm import MaskedText, mask_tokens, mask_words, masked_lm
from r2d2_jax.losses.matching import match_loss, match_probability, sample_negatives
from r2d2_jax.models.r2d2 import cls_of, normalise_images
from r2d2_jax.rng import stream
from r2d2_jax.sharding import apply_by_rows, replicated, rows_at
from r2d2_jax.train.queue import enqueue
from r2d2_jax.train.state import Recipe, TrainState

Terms = dict[str, jax.Array]


@struct.dataclass
class Towers:
    """What a student or a teacher makes of a batch."""

    image: Encoded
    text: Encoded


@struct.dataclass
class Outcome:
    """What the loss hands to the rest of the step: metrics, the teacher's view of the batch, the new feature mean."""

    metrics: Terms
    teacher: Towers | None
    feature_mean: jax.Array | None


def train_step(state: TrainState, batch: Batch, key: jax.Array, recipe: Recipe) -> tuple[TrainState, Terms]:
    """Learns from one global batch.

    Args:
        state: donated when compiled by `compile_train_step`.
        batch: the global batch.
        key: the run's key; every draw depends on it and on `state.step` only.
        recipe: what is trained and how.

    Returns:
        The state after the step, and float32 scalars for the log: every loss term and their sum `loss`, accuracies,
        temperature, queue fill, teacher gap, gradient norm and learning rate.
    """
    trainable = {part: state.params[part] for part in recipe.trainable_parts}

    def loss_of(trainable: Params) -> tuple[jax.Array, Outcome]:
        return pretraining_loss({**state.params, **trainable}, state, batch, key, recipe)

    (_, outcome), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    trainable["temperature"] = jnp.clip(trainable["temperature"], *recipe.temperature_range)
    params = {**state.params, **trainable}
    metrics = outcome.metrics | {
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(recipe.learning_rate(state.step), jnp.float32),
        "teacher_gap": _teacher_gap(params, state.teacher),
    }
    after = TrainState(
        step=state.step + 1,
        params=params,
        teacher=_averaged(state.teacher, params, recipe.loss.teacher_momentum),
        opt_state=opt_state,
        queue=_enqueued(state, batch, outcome.teacher),
        feature_mean=outcome.feature_mean,
    )
    return after, metrics


def pretraining_loss(
    params: Params, state: TrainState, batch: Batch, key: jax.Array, recipe: Recipe
) -> tuple[jax.Array, Outcome]:
    """The sum of all terms, and what the step needs beside it.

    total = (tgd or gcpr) + fgr + fgd + mlm, each with weight 1 (article).

    Args:
        params: the student's parameters; the loss is differentiable in them and in nothing else.
        state: teacher, queue, feature mean and step.
        batch: the global batch.
        key: the run's key.
        recipe: which terms there are.
    """
    loss = recipe.loss
    masked = _masked(batch, stream(key, "mask", state.step), recipe)
    student = _student(params, batch, masked, recipe)
    masked_text = _masked_text(params, student, batch, masked, recipe)
    teacher = _teacher(params, state, student, batch, recipe)
    temperature = params["temperature"]

    # What every row is compared with is gathered from all devices; this is the global contrastive loss.
    every_id = jax.lax.with_sharding_constraint(batch.image_id, replicated(recipe.mesh))
    positive = same_image(batch.image_id, every_id)
    image_embed = jax.lax.with_sharding_constraint(student.image.embed, replicated(recipe.mesh))
    text_embed = jax.lax.with_sharding_constraint(student.text.embed, replicated(recipe.mesh))
    i2t = similarity_logits(student.image.embed, text_embed, temperature)
    t2i = similarity_logits(student.text.embed, image_embed, temperature)
    metrics = {
        "i2t_accuracy": _hit_rate(i2t, positive),
        "t2i_accuracy": _hit_rate(t2i, positive),
        "temperature": temperature,
    }

    terms: Terms = {}
    if loss.contrastive == "tgd":
        terms["tgd"], queue_metrics = _target_guided(params, student, teacher, state, batch, recipe)
        metrics |= queue_metrics
    else:
        terms["gcpr"] = gcpr(student.image.embed, student.text.embed, positive, temperature)
    if loss.fgr:
        negative_key = stream(key, "hard_negative", state.step)
        triples, counts = _triples(student, batch, (i2t, t2i), positive, negative_key, recipe.mesh)
        terms["fgr"], masked_hidden, match_metrics = _ranking(params, triples, counts, masked, recipe)
        metrics |= match_metrics
    if loss.mlm:
        if not (loss.fgr and loss.enhanced_training):
            masked_hidden = _masked_pass(params, masked_text, student, batch, masked, recipe)
        logits = _apply(recipe, params, "masked_lm_logits", masked_hidden)
        terms["mlm"] = masked_lm(logits, masked.label, masked.masked)
        metrics["mlm_accuracy"] = _masked_accuracy(logits, masked)
    feature_mean = None
    if loss.fgd:
        terms["fgd"], feature_mean = _feature_guided(masked_text, teacher, state, recipe)
    total = sum(terms.values(), jnp.zeros(()))
    metrics |= {"loss": total, **terms}
    return total, Outcome(metrics, jax.lax.stop_gradient(teacher), feature_mean)


def _apply(recipe: Recipe, params: Params, stage: str, *inputs: jax.Array) -> Any:
    """One stage of the model with the given parameters."""
    return apply_by_rows(recipe.model, params, recipe.mesh, stage, *inputs)


def _masked(batch: Batch, key: jax.Array, recipe: Recipe) -> MaskedText:
    tokens, ids = recipe.tokens, batch.input_ids
    special = (ids == tokens.cls_id) | (ids == tokens.sep_id) | (ids == tokens.pad_id)
    maskable, share = batch.attention_mask & ~special, recipe.loss.mask_share
    if recipe.loss.whole_word_masking:
        assert batch.word is not None
        return mask_words(key, ids, maskable, batch.word, tokens.mask_id, share)
    return mask_tokens(key, ids, maskable, tokens.mask_id, share)


def _student(params: Params, batch: Batch, masked: MaskedText, recipe: Recipe) -> Towers:
    """One image forward and one text forward; with enhanced training the text is the masked one."""
    input_ids = masked.input_ids if recipe.loss.enhanced_training else batch.input_ids
    return Towers(
        image=_apply(recipe, params, "encode_image", normalise_images(batch.images)),
        text=_apply(recipe, params, "encode_text", input_ids, batch.attention_mask),
    )


def _masked_text(params: Params, student: Towers, batch: Batch, masked: MaskedText, recipe: Recipe) -> Encoded | None:
    """The student's masked text: a pass of its own only without enhanced training, and only if a term reads it."""
    if recipe.loss.enhanced_training:
        return student.text
    if not (recipe.loss.mlm or recipe.loss.fgd):
        return None
    return _apply(recipe, params, "encode_text", masked.input_ids, batch.attention_mask)


def _teacher(params: Params, state: TrainState, student: Towers, batch: Batch, recipe: Recipe) -> Towers | None:
    """The momentum weights' view of the complete input; a frozen image tower is shared with the student."""
    if state.teacher is None:
        return None
    weights = jax.lax.stop_gradient({**params, **state.teacher})
    text = _apply(recipe, weights, "encode_text", batch.input_ids, batch.attention_mask)
    if recipe.teacher_sees_own_image():
        image = _apply(recipe, weights, "encode_image", normalise_images(batch.images))
    else:
        feature = _apply(recipe, weights, "project_image", jax.lax.stop_gradient(student.image.tokens))
        image = Encoded(student.image.tokens, feature, unit_norm(feature))
    return Towers(image, text)


def _target_guided(
    params: Params, student: Towers, teacher: Towers | None, state: TrainState, batch: Batch, recipe: Recipe
) -> tuple[jax.Array, Terms]:
    """Pre-ranking over the teacher's embeddings of the global batch and of the queue."""
    assert teacher is not None and state.queue is not None  # noqa: PT018
    loss, queue, b = recipe.loss, state.queue, len(batch.image_id)
    everywhere = replicated(recipe.mesh)

    def keys(of_batch: jax.Array, of_queue: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.lax.with_sharding_constraint(of_batch, everywhere), of_queue])

    candidates = Candidates(
        image_embed=keys(teacher.image.embed, queue.image_embed),
        text_embed=keys(teacher.text.embed, queue.text_embed),
        weight=jnp.concatenate([jnp.ones(b), queue.weight(loss.queue_decay)]),
        valid=jnp.concatenate([jnp.ones(b, bool), queue.valid]),
    )
    positive = same_image(batch.image_id, keys(batch.image_id, queue.image_id))
    ramp = jnp.minimum(1.0, state.step / max(1, recipe.soft_target_ramp_steps))
    share = jnp.float32(loss.soft_target_share) * (ramp if recipe.soft_target_ramp_steps else 1.0)
    value = tgd(student.image.embed, student.text.embed, candidates, positive, params["temperature"], share)
    return value, {"queue_fill": jnp.mean(queue.valid.astype(jnp.float32)), "soft_target_share": share}


def _feature_guided(
    masked_text: Encoded | None, teacher: Towers | None, state: TrainState, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """FGD between the masked and the complete text, and the new running mean."""
    assert masked_text is not None and teacher is not None and state.feature_mean is not None  # noqa: PT018
    loss, teacher_feature = recipe.loss, jax.lax.stop_gradient(teacher.text.feature)
    mean = followed_mean(state.feature_mean, teacher_feature, state.step, loss.fgd_mean_momentum)
    temperatures = loss.fgd_student_temperature, loss.fgd_teacher_temperature
    return fgd(masked_text.feature, teacher_feature, mean, *temperatures), mean


@struct.dataclass
class Triples:
    """The rows of ranking: for each pair itself, with its hard negative image, with its hard negative text.

    image_tokens [3b n d], text_tokens [3b l d], attention_mask [3b l]; rows 3i, 3i+1, 3i+2 belong to pair i, so that a
    batch split over devices stays where it is.
    """

    image_tokens: jax.Array
    text_tokens: jax.Array
    attention_mask: jax.Array


def _triples(
    student: Towers, batch: Batch, logits: tuple[jax.Array, jax.Array], positive: jax.Array, key: jax.Array, mesh: Mesh
) -> tuple[Triples, jax.Array]:
    """Draws the hard negatives over all devices and lays out the rows; False on rows without a negative."""
    i2t, t2i = (jax.lax.stop_gradient(direction) for direction in logits)
    text_key, image_key = jax.random.split(key)
    negative_text, has_text = sample_negatives(text_key, i2t, positive)
    negative_image, has_image = sample_negatives(image_key, t2i, positive)
    image, text, mask = student.image.tokens, student.text.tokens, batch.attention_mask
    triples = Triples(
        image_tokens=_interleaved(image, rows_at(image, negative_image, mesh), image),
        text_tokens=_interleaved(text, text, rows_at(text, negative_text, mesh)),
        attention_mask=_interleaved(mask, mask, mask[negative_text]),
    )
    return triples, _interleaved(jnp.ones_like(has_text), has_image, has_text)


def _interleaved(*rows: jax.Array) -> jax.Array:
    return jnp.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])


def _ranking(
    params: Params, triples: Triples, counts: jax.Array, masked: MaskedText, recipe: Recipe
) -> tuple[jax.Array, jax.Array, Terms]:
    """FGR, the positive pairs' masked tokens [b s d] as the same forward leaves them, and match accuracies."""
    b = len(masked.position)
    read = jnp.concatenate([cls_of(masked.position), masked.position], axis=1)
    if not (recipe.loss.mlm and recipe.loss.enhanced_training):
        read = cls_of(masked.position)
    rows = (triples.text_tokens, triples.attention_mask, triples.image_tokens)
    text_image = _apply(recipe, params, "cross_text_image", *rows, jnp.repeat(read, 3, axis=0))
    image_text = _apply(recipe, params, "cross_image_text", *rows, cls_of(triples.text_tokens))
    logits = _apply(recipe, params, "match_logits", text_image[:, 0], image_text[:, 0])
    label = jnp.tile(jnp.array([True, False, False]), b)
    hidden = text_image.reshape(b, 3, read.shape[1], -1)[:, 0, 1:]
    correct = (match_probability(logits) > 0.5) == label
    metrics = {
        "match_accuracy": _share(correct, label),
        "no_match_accuracy": _share(correct, ~label & counts),
    }
    return match_loss(logits, label, counts, recipe.loss.match_class_weights), hidden, metrics


def _masked_pass(
    params: Params, masked_text: Encoded | None, student: Towers, batch: Batch, masked: MaskedText, recipe: Recipe
) -> jax.Array:
    """A text-image pass [b s d] for the masked tokens alone, where no ranking pass has read the masked text."""
    assert masked_text is not None
    rows = (masked_text.tokens, batch.attention_mask, student.image.tokens)
    return _apply(recipe, params, "cross_text_image", *rows, masked.position)


def _share(hit: jax.Array, among: jax.Array) -> jax.Array:
    return jnp.sum(hit & among) / jnp.maximum(jnp.sum(among), 1)


def _hit_rate(logits: jax.Array, positive: jax.Array) -> jax.Array:
    """Share of the rows whose most similar column in the global batch shows the same image."""
    best = jnp.argmax(logits, axis=1)
    return jnp.mean(jnp.take_along_axis(positive, best[:, None], axis=1).astype(jnp.float32))


def _masked_accuracy(logits: jax.Array, masked: MaskedText) -> jax.Array:
    return _share(jnp.argmax(logits, axis=-1) == masked.label, masked.masked)


def _averaged(teacher: Params | None, params: Params, momentum: float) -> Params | None:
    """momentum * teacher + (1 - momentum) * student, for the parts that the teacher has."""
    if teacher is None:
        return None
    student = {part: params[part] for part in teacher}
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)


def _teacher_gap(params: Params, teacher: Params | None) -> jax.Array:
    """|student - teacher| / |student| over the averaged parameters; 0 without a teacher."""
    if teacher is None:
        return jnp.zeros(())
    student = {part: params[part] for part in teacher}
    return optax.tree.norm(jax.tree.map(jnp.subtract, student, teacher)) / optax.tree.norm(student)


def _enqueued(state: TrainState, batch: Batch, teacher: Towers | None) -> Any:
    if state.queue is None or teacher is None:
        return None
    return enqueue(state.queue, teacher.image.embed, teacher.text.embed, batch.image_id)
