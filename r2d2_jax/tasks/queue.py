"""The weighted queue of target-guided distillation: a ring buffer of fixed shape that lives on the devices."""

import jax
import jax.numpy as jnp
from flax import struct

from r2d2_jax.arrays import Array, Float, UInt32, checked


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
