"""What several tasks compute alike: both towers, similarities over all devices, and ranking with hard negatives."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r2d2_jax.arrays import (
    Array,
    Batch,
    Bool,
    Encoded,
    Float,
    Int,
    Params,
    checked,
    interleaved,
    right_pairs,
    unit_norm,
)
from r2d2_jax.losses.contrastive import gcpr, similarity_logits
from r2d2_jax.losses.masked_lm import label_is_best, label_log_probability
from r2d2_jax.losses.matching import match_loss, match_probability, sample_negatives
from r2d2_jax.rng import stream
from r2d2_jax.sharding import apply_by_rows, everywhere, in_micro_batches, rows_of_all_devices
from r2d2_jax.tasks.task import FeatureProbe, Metrics, Task

# One stage of the model with bound parameters: `forward("encode_text", input_ids, attention_mask)`; see
# `forward_in_parts`.
Forward = Callable[..., Any]


def student_forward(
    task: Task, params: Params, mesh: Mesh, key: jax.Array, step: jax.Array, probe: FeatureProbe | None = None
) -> Forward:
    """The stages of the model that is trained, with its dropout: what a loss makes anew for each step.

    Each pass draws masks of its own: its key is a function of the run's key, the step, the stage and how often the step
    has run that stage before. Teacher and evaluation have no key, and so no dropout.

    Args:
        task: whose model is trained, in its micro batches.
        params: the model's parameters.
        mesh: the devices.
        key: the run's key.
        step: completed steps.
        probe: is added to what both towers make, see `FeatureProbe`.
    """
    probes = {} if probe is None else {"encode_pixels": probe.image, "encode_text": probe.text}
    passes: Counter[str] = Counter()

    def forward(stage: str, *inputs: jax.Array, **then: Any) -> Any:
        has_dropout = task.model.config.has_dropout
        dropout = stream(key, f"dropout {stage} {passes[stage]}", step) if has_dropout else None
        passes[stage] += 1
        made = forward_in_parts(task, params, mesh, dropout)(stage, *inputs, **then)
        return probed(made, probes[stage]) if stage in probes else made

    return forward


def forward_in_parts(task: Task, params: Params, mesh: Mesh, dropout: jax.Array | None = None) -> Forward:
    """The stages of a task's model, each computed in as many micro batches as the task has.

    Args:
        task: the task.
        params: of its model.
        mesh: the devices.
        dropout: random key of one pass, of which each micro batch takes its own; None for a pass without dropout.

    Returns:
        `forward(stage, *inputs, then=None, beside=())`. `then`, a function of what the stage has made and of the rows
        `beside`, belongs to the pass, so that what the stage has made need never exist for the whole batch.
    """

    def forward(
        stage: str, *inputs: jax.Array, then: Callable[..., Any] | None = None, beside: tuple[jax.Array, ...] = ()
    ) -> Any:
        def part(number: jax.Array | int, rows: Any) -> Any:
            own, more = rows
            key = dropout if dropout is None or task.micro_batches == 1 else jax.random.fold_in(dropout, number)
            made = apply_by_rows(task.model, params, mesh, stage, *own, dropout=key)
            return made if then is None else then(made, *more)

        return in_micro_batches(part, task.micro_batches, mesh, (inputs, beside))

    return forward


def probed(made: Encoded, probe: jax.Array) -> Encoded:
    """What a tower has made, with a probe [b e] added to its feature."""
    feature = made.feature + probe
    return Encoded(made.tokens, feature, unit_norm(feature))


@struct.dataclass
class Towers:
    """What the student makes of a batch."""

    image: Encoded
    text: Encoded


@struct.dataclass
class Rows:
    """What rows of the batch are compared by.

    number: int32 [r], of the row in the global batch. image_embed, text_embed: float32 [r e], unit-norm.
    image_id: uint32 [r 2]. text_id: uint32 [r 2], or None; see `Batch`.
    """

    number: jax.Array
    image_embed: jax.Array
    text_embed: jax.Array
    image_id: jax.Array
    text_id: jax.Array | None


def rows_of(towers: Towers, batch: Batch) -> Rows:
    """All rows of a batch."""
    number = jnp.arange(len(batch.image_id))
    return Rows(number, towers.image.embed, towers.text.embed, batch.image_id, batch.text_id)


@struct.dataclass
class Similarities:
    """Similarity / temperature of rows of the batch with every row of it, on all devices.

    i2t, t2i: float32 [r b]. positive: bool [r b], True where image and text belong together, see `right_pairs`.
    """

    i2t: jax.Array
    t2i: jax.Array
    positive: jax.Array

    def softened(self, hardness: float) -> "Similarities":
        """Multiplied by a number in [0, 1]: at 1 negatives are drawn as the article has it, at 0 evenly.

        Between the two they are drawn at temperature / hardness. To tell apart what the towers cannot is too hard for
        cross encoders that know nothing: on photographs from scratch FGR stayed at the ln 2 of guessing (our decision;
        docs/method.md has the evidence).
        """
        return Similarities(hardness * self.i2t, hardness * self.t2i, self.positive)


@checked
def similarities(rows: Rows, every: Rows, temperature: Float[Array, ""]) -> Similarities:
    """Compares some rows of a batch with every row of it."""
    # Two products rather than one and its transpose: with rows split over devices the transpose would have to move.
    return Similarities(
        i2t=similarity_logits(rows.image_embed, every.text_embed, temperature),
        t2i=similarity_logits(rows.text_embed, every.image_embed, temperature),
        positive=right_pairs(rows.image_id, rows.text_id, every.image_id, every.text_id),
    )


@struct.dataclass
class Negatives:
    """The hard negative of each row, a row of the global batch.

    text, image: int [b], of its image and of its text. has_text, has_image: bool [b]; False where a pair has no such
    negative in the whole batch.
    """

    text: jax.Array
    image: jax.Array
    has_text: jax.Array
    has_image: jax.Array


def hard_negatives(key: jax.Array, found: Similarities, number: jax.Array) -> Negatives:
    """Draws one hard negative text per image and one hard negative image per text (article).

    Args:
        key: random key of the draw.
        found: similarities of some rows; receive no gradient.
        number: int [r], of these rows in the global batch.
    """
    text_key, image_key = jax.random.split(key)
    text, has_text = sample_negatives(text_key, jax.lax.stop_gradient(found.i2t), found.positive, number)
    image, has_image = sample_negatives(image_key, jax.lax.stop_gradient(found.t2i), found.positive, number)
    return Negatives(text, image, has_text, has_image)


@struct.dataclass
class PreRanked:
    """What comparing each row of the batch with every row of it leaves, each [b].

    i2t_hit, t2i_hit: bool, whether the most similar column belongs to the row. negatives: None unless any are drawn.
    gcpr: float32, the loss of each row; None unless it is wanted.
    """

    i2t_hit: jax.Array
    t2i_hit: jax.Array
    negatives: Negatives | None
    gcpr: jax.Array | None

    def metrics(self) -> Metrics:
        """Contrastive accuracy both ways."""
        return {"i2t_accuracy": jnp.mean(self.i2t_hit), "t2i_accuracy": jnp.mean(self.t2i_hit)}


def pre_ranking(
    task: Task,
    towers: Towers,
    batch: Batch,
    temperature: jax.Array,
    mesh: Mesh,
    *,
    draw: jax.Array | None,
    hardness: float = 1.0,
    with_gcpr: bool = True,
) -> PreRanked:
    """Compares each row with the rows of all devices: this is what makes the contrastive loss global.

    In the task's micro batches, so that no more rows of similarities than theirs exist at a time; but GCPR on several
    devices for all rows of a device at once. Its gradients reach the embeddings on both sides of every similarity
    (article), and those of the columns would be added up over the devices for every micro batch (our decision).

    Args:
        task: the task.
        towers: embeddings of the student.
        batch: the global batch.
        temperature: a positive scalar.
        mesh: the devices.
        draw: random key of hard negatives; None draws none.
        hardness: of the draw, see `Similarities.softened`.
        with_gcpr: whether its loss is wanted; otherwise nothing here has a gradient.
    """
    rows = rows_of(towers, batch)
    every = jax.tree.map(partial(everywhere, mesh=mesh), rows)

    def part(_: Any, own: Rows) -> PreRanked:
        found = similarities(own, every, temperature)
        return PreRanked(
            i2t_hit=hits(found.i2t, found.positive),
            t2i_hit=hits(found.t2i, found.positive),
            negatives=None if draw is None else hard_negatives(draw, found.softened(hardness), own.number),
            gcpr=gcpr(found.i2t, found.t2i, found.positive) if with_gcpr else None,
        )

    return in_micro_batches(part, 1 if with_gcpr and mesh.size > 1 else task.micro_batches, mesh, rows)


@checked
def hits(logits: Float[Array, "r b"], positive: Bool[Array, "r b"]) -> Bool[Array, " r"]:
    """Whether the most similar column of each row belongs to it."""
    best = best_column(logits)
    return jnp.take_along_axis(positive, best[:, None], axis=1)[:, 0] & (best >= 0)


@checked
def best_column(logits: Float[Array, "b c"]) -> Int[Array, " b"]:
    """The column of each row's largest logit; -1, which is never a hit, where one is NaN."""
    return jnp.where(jnp.isnan(logits).any(axis=-1), -1, jnp.argmax(logits, axis=-1))


@struct.dataclass
class LabelScores:
    """What masked-language modelling reads of logits.

    log_probability: float32 [b s], of the labels. hit: bool [b s], whether the label has the largest logit.
    """

    log_probability: jax.Array
    hit: jax.Array


def label_scores(logits: jax.Array, label: jax.Array) -> LabelScores:
    """Of vocabulary logits [b s v] and labels [b s]."""
    return LabelScores(label_log_probability(logits, label), label_is_best(logits, label))


@checked
def share_of(hit: Bool[Array, "..."], among: Bool[Array, "..."]) -> Float[Array, ""]:
    """Share of hits among what is marked; 0 if nothing is."""
    return jnp.sum(hit & among) / jnp.maximum(jnp.sum(among), 1)


@struct.dataclass
class PairsAndNegatives:
    """The rows of ranking: those of pair i stand at 2i, its negative image and its negative text at 2i + 1.

    So a batch that is split over devices stays where it is.

    image_tokens: [2b n d]. text_tokens: [2b l d]. attention_mask: bool [2b l].
    """

    image_tokens: jax.Array
    text_tokens: jax.Array
    attention_mask: jax.Array


@struct.dataclass
class Ranking:
    """What the ranking pass leaves: FGR's loss, its metrics, and tokens of the matching pairs.

    positive_tokens: [b s d], hidden states of the text-image cross encoder for the matching pairs alone, at the
        positions that the caller wanted; masked-language modelling reads them (enhanced training).
    """

    loss: jax.Array
    metrics: Metrics
    positive_tokens: jax.Array


@checked
def ranking(
    forward: Forward,
    towers: Towers,
    batch: Batch,
    negatives: Negatives,
    mesh: Mesh,
    class_weights: tuple[float, float],
    wanted_positions: Int[Array, "b s"],
) -> Ranking:
    """Fine-grained ranking: one pass of both cross encoders over the pairs and their hard negatives (article).

    Args:
        forward: the model's stages.
        towers: tokens of the student.
        batch: the global batch.
        negatives: of each pair.
        mesh: the devices.
        class_weights: of (no match, match) in the cross-entropy.
        wanted_positions: text positions whose hidden states are wanted for the matching pairs; s may be 0.
    """
    rows = with_negatives(towers, batch.attention_mask, negatives, mesh)
    logits, tokens = forward("rank", wanted_positions, rows.text_tokens, rows.attention_mask, rows.image_tokens)
    every = jnp.ones_like(negatives.has_image)
    label = interleaved(every, ~every, ~every)
    has_negative = interleaved(every, negatives.has_image, negatives.has_text)
    return Ranking(
        loss=match_loss(logits, label, has_negative, class_weights),
        metrics=match_metrics(logits, label, has_negative),
        positive_tokens=tokens,
    )


@checked
def with_negatives(towers: Towers, mask: Bool[Array, "b l"], negatives: Negatives, mesh: Mesh) -> PairsAndNegatives:
    """The pairs, and from all devices' rows the negatives of each."""
    images, texts = towers.image.tokens, towers.text.tokens
    return PairsAndNegatives(
        image_tokens=interleaved(images, rows_of_all_devices(images, negatives.image, mesh)),
        text_tokens=interleaved(texts, rows_of_all_devices(texts, negatives.text, mesh)),
        attention_mask=interleaved(mask, mask[negatives.text]),
    )


@checked
def match_metrics(logits: Float[Array, "b c 2"], label: Bool[Array, " b"], has_negative: Bool[Array, " b"]) -> Metrics:
    """Match accuracy of each class; the loss alone may hide that one class is never predicted."""
    probability = match_probability(logits)
    correct = jnp.where(label, probability > 0.5, probability <= 0.5)  # NaN is never
    return {
        "match_accuracy": share_of(correct, label),
        "no_match_accuracy": share_of(correct, ~label & has_negative),
    }
