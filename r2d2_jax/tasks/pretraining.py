"""Pre-training, in the order of the article.

student -> teacher -> pre-ranking -> ranking -> masked language modelling -> feature-guided distillation; then, with the
updated student, teacher average and queue.
"""

import logging
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from r2d2_jax.arrays import Array, Batch, Embedded, Encoded, Float, Int, Params, checked, right_pairs, unit_norm
from r2d2_jax.config.reading import Config
from r2d2_jax.config.tasks import LossConfig
from r2d2_jax.errors import UserError
from r2d2_jax.losses.distillation import Candidates, distilled_feature, fgd, running_mean, tgd
from r2d2_jax.losses.masked_lm import MaskedText, mask_tokens, mask_words, masked_lm
from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.rng import stream
from r2d2_jax.sharding import everywhere, in_micro_batches
from r2d2_jax.tasks.queue import Queue, empty_queue, enqueue
from r2d2_jax.tasks.stages import (
    Forward,
    Towers,
    forward_in_parts,
    label_scores,
    pre_ranking,
    ranking,
    share_of,
    student_forward,
)
from r2d2_jax.tasks.task import FeatureProbe, LossResult, Metrics, SpecialTokens, Task, trainable_parts

logger = logging.getLogger(__name__)


@struct.dataclass
class PretrainingMemory:
    """What pre-training carries from step to step beside the student.

    teacher: exponential moving average of the parts in `teacher_parts`; None when nothing distils.
    queue: None unless target-guided distillation is on.
    feature_mean: float32 [e], running mean of the teacher's text features; None unless feature-guided distillation is
        on.
    """

    teacher: Params | None
    queue: Queue | None
    feature_mean: jax.Array | None


@struct.dataclass
class Teacher:
    """What the teacher makes of a batch; nobody reads its tokens."""

    image: Embedded
    text: Embedded


@struct.dataclass
class Carry:
    """What the loss leaves for `after`: the teacher's view of the batch, and the new feature mean."""

    teacher: Teacher | None
    feature_mean: jax.Array | None


@dataclass(frozen=True, eq=False)
class Pretraining(Task):
    """The article's pre-training and its ablations.

    Attributes:
        terms: which terms there are, and their constants.
        teacher_parts: names of the top-level parameter groups that the teacher keeps an average of.
        epoch_steps: steps of an epoch, in which the configuration gives its ramps.
        tokens: special token ids.
    """

    terms: LossConfig
    teacher_parts: tuple[str, ...]
    epoch_steps: int
    tokens: SpecialTokens

    def init(self, params: Params) -> PretrainingMemory:
        """The teacher starts as a copy of the student, the queue empty."""
        embed_size = self.model.config.embed_size
        teacher = {part: jax.tree.map(jnp.copy, params[part]) for part in self.teacher_parts}
        return PretrainingMemory(
            teacher=teacher or None,
            queue=self._empty_queue() if self.terms.contrastive == "tgd" else None,
            feature_mean=jnp.zeros((embed_size,)) if self.terms.fgd else None,
        )

    def _empty_queue(self) -> Queue:
        length, embed_size = self.terms.queue_length, self.model.config.embed_size
        return empty_queue(length, embed_size, text_ids=self.reads_text_ids)

    def loss(
        self,
        params: Params,
        memory: PretrainingMemory,
        batch: Batch,
        step: jax.Array,
        key: jax.Array,
        mesh: Mesh,
        probe: FeatureProbe | None = None,
    ) -> LossResult:
        """total = (tgd or gcpr) + fgr + fgd + mlm, each with weight 1 (article); fgd only after its ramp."""
        forward = student_forward(self, params, mesh, key, step, probe)
        masked = self.masked(batch, stream(key, "mask", step))
        student = self._student(forward, batch, masked)
        masked_text = self._masked_text(forward, student, batch, masked)
        teacher = self._teacher(params, memory, student, batch, mesh)

        temperature = params["temperature"]
        draw = stream(key, "hard_negative", step) if self.terms.fgr else None
        hardness, with_gcpr = self.terms.negative_hardness, self.terms.contrastive == "gcpr"
        found = pre_ranking(self, student, batch, temperature, mesh, draw=draw, hardness=hardness, with_gcpr=with_gcpr)
        metrics = found.metrics() | {"temperature": temperature}
        terms: Metrics = {}
        if memory.queue is not None and teacher is not None:
            share = self.soft_target_share(step)
            terms["tgd"] = self._target_guided(student, teacher, memory.queue, batch, temperature, share, mesh)
            metrics |= {"queue_fill": memory.queue.fill(), "soft_target_share": share}
        if found.gcpr is not None:
            terms["gcpr"] = jnp.mean(found.gcpr)
        masked_tokens = None
        if found.negatives is not None:
            wanted = masked.position if self.terms.mlm_reads_ranking else masked.position[:, :0]
            weights = self.terms.match_class_weights
            ranked = ranking(forward, student, batch, found.negatives, mesh, weights, wanted)
            terms["fgr"], masked_tokens = ranked.loss, ranked.positive_tokens
            metrics |= ranked.metrics
        if self.terms.mlm:
            if masked_tokens is None or not self.terms.mlm_reads_ranking:
                rows = (masked_text.tokens, batch.attention_mask, student.image.tokens)
                masked_tokens = forward("cross_text_image", *rows, masked.position)
            scores = forward("masked_lm_logits", masked_tokens, then=label_scores, beside=(masked.label,))
            terms["mlm"] = masked_lm(scores.log_probability, masked.masked)
            metrics["mlm_accuracy"] = share_of(scores.hit, masked.masked)
        feature_mean = None
        if memory.feature_mean is not None and teacher is not None:
            distilled, feature_mean = self._feature_guided(masked_text, teacher, memory.feature_mean, step)
            weight = self._ramp(step, self.terms.fgd_ramp_epochs)
            terms["fgd"] = weight * distilled
            metrics["fgd_weight"] = weight
        return LossResult(terms, metrics, Carry(jax.lax.stop_gradient(teacher), feature_mean))

    def after(
        self, memory: PretrainingMemory, params: Params, batch: Batch, result: LossResult
    ) -> tuple[PretrainingMemory, Metrics]:
        """Moves the teacher towards the updated student, and puts the batch into the queue."""
        carry: Carry = result.carry
        queue = memory.queue
        if queue is not None and carry.teacher is not None:
            embeds = carry.teacher.image.embed, carry.teacher.text.embed
            queue = enqueue(queue, *embeds, batch.image_id, batch.text_id)
        if memory.teacher is None:
            return PretrainingMemory(None, queue, carry.feature_mean), {"teacher_gap": jnp.zeros(())}
        student = {part: params[part] for part in memory.teacher}
        teacher = moving_average(memory.teacher, student, self.terms.teacher_momentum)
        gap = teacher_gap(student, memory.teacher)
        return PretrainingMemory(teacher, queue, carry.feature_mean), {"teacher_gap": gap}

    def masked(self, batch: Batch, key: jax.Array) -> MaskedText:
        """The texts with 15 % of their tokens masked, or of their words; CLS, SEP and PAD never are (article)."""
        ids, share = batch.input_ids, self.terms.mask_share
        special = (ids == self.tokens.cls_id) | (ids == self.tokens.sep_id) | (ids == self.tokens.pad_id)
        maskable = batch.attention_mask & ~special
        if self.reads_words:
            return mask_words(key, ids, maskable, batch.words(), self.tokens.mask_id, share)
        return mask_tokens(key, ids, maskable, self.tokens.mask_id, share)

    @checked
    def soft_target_share(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """alpha of the step: reached linearly over the ramp (our decision)."""
        return jnp.float32(self.terms.soft_target_share) * self._ramp(step, self.terms.soft_target_ramp_epochs)

    def _ramp(self, step: jax.Array | int, epochs: float) -> jax.Array:
        """Float32 scalar that grows linearly from 0 to 1 over so many epochs; 1 at once if there are none."""
        steps = round(epochs * self.epoch_steps)
        return jnp.minimum(1.0, step / steps) if steps else jnp.float32(1)

    def _student(self, forward: Forward, batch: Batch, masked: MaskedText) -> Towers:
        """One image forward and one text forward; with enhanced training the text is the masked one (article)."""
        input_ids = masked.input_ids if self.terms.enhanced_training else batch.input_ids
        return Towers(
            image=forward("encode_pixels", batch.images),
            text=forward("encode_text", input_ids, batch.attention_mask),
        )

    def _masked_text(self, forward: Forward, student: Towers, batch: Batch, masked: MaskedText) -> Encoded:
        """The student's masked text: without enhanced training a pass of its own, compiled only if a term reads it."""
        if self.terms.enhanced_training:
            return student.text
        return forward("encode_text", masked.input_ids, batch.attention_mask)

    def _teacher(
        self, params: Params, memory: PretrainingMemory, student: Towers, batch: Batch, mesh: Mesh
    ) -> Teacher | None:
        """The momentum weights' view of the complete input; a frozen image tower is shared with the student."""
        if memory.teacher is None:
            return None
        weights = jax.lax.stop_gradient({**params, **memory.teacher})
        forward = forward_in_parts(self, weights, mesh)
        text = forward("embed_text", batch.input_ids, batch.attention_mask)
        if "image_encoder" in self.teacher_parts:
            return Teacher(forward("embed_pixels", batch.images), text)
        feature = forward("project_image", jax.lax.stop_gradient(student.image.tokens))
        return Teacher(Embedded(feature, unit_norm(feature)), text)

    def _target_guided(
        self,
        student: Towers,
        teacher: Teacher,
        queue: Queue,
        batch: Batch,
        temperature: jax.Array,
        share: jax.Array,
        mesh: Mesh,
    ) -> jax.Array:
        """TgD over the teacher's embeddings of the global batch and of the queue (article).

        In the task's micro batches, so that no more rows of similarities than theirs exist at a time; the backward pass
        needs none of them.
        """
        b = len(batch.image_id)

        def keys(of_batch: jax.Array, of_queue: jax.Array) -> jax.Array:
            return jnp.concatenate([everywhere(of_batch, mesh), of_queue])

        candidates = Candidates(
            image_embed=(everywhere(teacher.image.embed, mesh), queue.image_embed),
            text_embed=(everywhere(teacher.text.embed, mesh), queue.text_embed),
            weight=jnp.concatenate([jnp.ones(b), queue.weight(self.terms.queue_decay)]),
            valid=jnp.concatenate([jnp.ones(b, bool), queue.valid]),
        )
        image_keys = keys(batch.image_id, queue.image_id)
        texts = batch.text_id, queue.text_id
        text_keys = None if texts[0] is None or texts[1] is None else keys(texts[0], texts[1])

        def part(_: Any, rows: Any) -> jax.Array:
            image_id, text_id, (image, text), (teacher_image, teacher_text) = rows
            positive = right_pairs(image_id, text_id, image_keys, text_keys)
            return tgd(image, text, teacher_image, teacher_text, candidates, positive, temperature, share)

        own, teachers = ((towers.image.embed, towers.text.embed) for towers in (student, teacher))
        rows = (batch.image_id, batch.text_id, own, teachers)
        return jnp.mean(in_micro_batches(part, self.micro_batches, mesh, rows, recompute=False))

    def _feature_guided(
        self, masked_text: Encoded, teacher: Teacher, mean: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """FgD between the masked and the complete text (article), and the new running mean."""
        form = self.terms.fgd_features
        teacher_feature = jax.lax.stop_gradient(distilled_feature(teacher.text.feature, form))
        mean = running_mean(mean, teacher_feature, step, self.terms.fgd_mean_momentum)
        temperatures = self.terms.fgd_student_temperature, self.terms.fgd_teacher_temperature
        return fgd(distilled_feature(masked_text.feature, form), teacher_feature, mean, *temperatures), mean


def moving_average(teacher: Params, student: Params, momentum: float) -> Params:
    """momentum * teacher + (1 - momentum) * student, leaf by leaf (article)."""
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)


@checked
def teacher_gap(student: Params, teacher: Params) -> Float[Array, ""]:
    """|student - teacher| / |student| over the averaged parameters."""
    return optax.tree.norm(jax.tree.map(jnp.subtract, student, teacher)) / optax.tree.norm(student)


def pretraining(config: Config, tokens: SpecialTokens, epoch_steps: int, text_ids: bool | None) -> Pretraining:
    """Pre-training as configured; see `build_task`.

    Whether identities of texts are read is `loss.text_ids`, not the data's to say (our decision): the queue keeps them,
    so they are part of every checkpoint, and a run that has begun without must resume the same.
    """
    terms = config.loss
    if text_ids is False and terms.text_ids:
        raise UserError(
            "loss.text_ids is on, but none of the training data has text_ids; set it to False, or prepare data of a "
            "corpus that gives texts an identity (docs/corpora.md)"
        )
    if text_ids and not terms.text_ids:
        logger.warning(
            "the training data says which texts several images share (text_ids), but loss.text_ids is off: a text "
            "counts as wrong for its other images; a new run with loss.text_ids = True counts it as right"
        )
    model = R2D2(config.model, matching=terms.fgr, masked_lm=terms.mlm)
    return Pretraining(
        model=model,
        trainable_parts=trainable_parts(model),
        reads_words=terms.whole_word_masking,
        reads_text_ids=terms.text_ids,
        micro_batches=config.train.micro_batches,
        terms=terms,
        teacher_parts=teacher_parts(terms, image_tower_is_trained=not config.model.freeze_image_tower),
        epoch_steps=epoch_steps,
        tokens=tokens,
    )


def teacher_parts(terms: LossConfig, *, image_tower_is_trained: bool) -> tuple[str, ...]:
    """The parameter groups that the teacher averages: those that its embeddings need and that the student trains."""
    if not terms.has_teacher:
        return ()
    text = ("text_encoder", "text_projection")
    if terms.contrastive != "tgd":
        return text
    return (*text, "image_projection", *(("image_encoder",) if image_tower_is_trained else ()))
