"""The weighted queue of target-guided distillation: a ring buffer of fixed shape that lives on the devices."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from r2d2_jax.arrays import Array, Float, UInt32, checked
from r2d2_jax.config.reading import Config

# The share of the teacher that may have been replaced since the oldest entry that counts was made, where the text tower
# starts from scratch. Our decision: on the demonstration a share of 0.15 cost at most four points of recall, 0.38 five,
# and 0.85 nearly half of it (docs/method.md).
MOST_REPLACED = 0.2


@struct.dataclass
class Queue:
    """Teacher embeddings of past batches.

    The weight of an entry, decay^age, is derived from its age, which keeps it exact at any age (our decision; the
    article multiplies a stored weight).

    image_embed, text_embed: float32 [k e], unit-norm.
    image_id: uint32 [k 2]. text_id: the same of the texts, see `Batch`; None unless the task reads it.
    age: int32 [k]; completed steps since the entry came in, 0 for the newest.
    valid: bool [k]; False on slots that were never filled.
    head: int32 scalar; the slot that is filled next.
    """

    image_embed: jax.Array
    text_embed: jax.Array
    image_id: jax.Array
    age: jax.Array
    valid: jax.Array
    head: jax.Array
    text_id: jax.Array | None = None

    def weight(self, decay: float) -> jax.Array:
        """float32 [k]: decay^age, which is 1 when an entry comes in and is multiplied by `decay` each step after."""
        return jnp.power(jnp.float32(decay), self.age.astype(jnp.float32))

    def fill(self) -> jax.Array:
        """float32 scalar: the share of the slots that hold an entry."""
        return jnp.mean(self.valid.astype(jnp.float32))


def empty_queue(length: int, embed_size: int, *, text_ids: bool = False) -> Queue:
    """A queue of `length` unfilled slots, which also keep the identity of their text if `text_ids`."""
    return Queue(
        image_embed=jnp.zeros((length, embed_size)),
        text_embed=jnp.zeros((length, embed_size)),
        image_id=jnp.zeros((length, 2), jnp.uint32),
        age=jnp.zeros((length,), jnp.int32),
        valid=jnp.zeros((length,), bool),
        head=jnp.zeros((), jnp.int32),
        text_id=jnp.zeros((length, 2), jnp.uint32) if text_ids else None,
    )


@checked
def enqueue(
    queue: Queue,
    image_embed: Float[Array, "b e"],
    text_embed: Float[Array, "b e"],
    image_id: UInt32[Array, "b 2"],
    text_id: UInt32[Array, "b 2"] | None = None,
) -> Queue:
    """Ages every entry by one step, then writes the batch over the oldest entries, wrapping round the end.

    Any batch size up to the queue's length works; they need not divide each other. A queue that keeps the identities
    of texts needs those of the batch.
    """
    length, rows = len(queue.age), len(image_id)
    if rows > length:
        raise ValueError(f"a batch of {rows} does not fit into a queue of {length}")
    slot = (queue.head + jnp.arange(rows)) % length
    return Queue(
        image_embed=queue.image_embed.at[slot].set(image_embed),
        text_embed=queue.text_embed.at[slot].set(text_embed),
        image_id=queue.image_id.at[slot].set(image_id),
        age=(queue.age + 1).at[slot].set(0),
        valid=queue.valid.at[slot].set(True),
        head=(queue.head + rows) % length,
        text_id=None if queue.text_id is None else queue.text_id.at[slot].set(text_id),
    )


def old_for_its_teacher(config: Config) -> str | None:
    """A rule of thumb: whether a queue is too old for a teacher that learns from scratch; the warning if it is.

    An entry is an embedding by the teacher of its day. The oldest is queue_length / batch_size steps old; those of more
    than 1 / (1 - queue_decay) steps weigh little. Meanwhile 1 - teacher_momentum^age of the teacher is replaced. From
    initial weights with small rates what replaces it is much the same; from scratch it is not, and the student learns
    to leave old embeddings behind in place of telling images apart (our decision).

    Args:
        config: the whole configuration; only pre-training with a queue is judged.
    """
    loss, rows = config.loss, config.train.batch_size
    if config.task != "pretraining" or loss.contrastive != "tgd" or config.initial.text or config.initial.model:
        return None
    oldest = loss.queue_length / rows
    decayed = 1 / (1 - loss.queue_decay) if loss.queue_decay < 1 else math.inf
    replaced = 1 - loss.teacher_momentum ** min(oldest, decayed)
    if replaced <= MOST_REPLACED or loss.queue_length <= rows:
        return None
    within = math.log(1 - MOST_REPLACED) / math.log(loss.teacher_momentum) if loss.teacher_momentum else 0.0
    longest = max(rows, int(within) * rows)
    return (
        f"the text tower starts from scratch, and the queue is old for its teacher: the oldest entry is {oldest:.0f} "
        f"steps old (loss.queue_length {loss.queue_length} / train.batch_size {rows}) and weighs "
        f"{loss.queue_decay**oldest:.2g} (loss.queue_decay {loss.queue_decay}), and the teacher is another one after "
        f"{1 / (1 - loss.teacher_momentum):.0f} steps (loss.teacher_momentum {loss.teacher_momentum}); set "
        f"loss.queue_length to {longest} at most, or name initial weights"
    )
