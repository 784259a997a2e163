"""The axis legend, checked shape annotations, and the arrays that travel between stages.

One legend for every annotation in the package: `b` global batch, `n` image tokens (1 + patches), `l` text tokens,
`d` width, `e` embedding size, `h` heads, `k` queue length, `v` vocabulary, `m` candidates (b + k).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from beartype import beartype
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32, jaxtyped

__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Encoded",
    "Float",
    "Int",
    "Params",
    "UInt8",
    "UInt32",
    "checked",
    "exact_if_float32",
    "interleaved",
    "right_pairs",
    "same_image",
    "same_text",
    "unit_norm",
]

Function = TypeVar("Function", bound=Callable)
# A tree of parameters: nested dicts of arrays, the parts of the model outermost.
Params = dict[str, Any]


def checked(function: Function) -> Function:
    """Checks the annotated shapes and dtypes of a function whenever it is called or traced (no cost once compiled)."""
    return jaxtyped(typechecker=beartype)(function)


@struct.dataclass
class Batch:
    """One global batch, as it arrives on the devices.

    images: uint8 [b height width 3]; normalised on the device.
    input_ids: int32 [b l]; token 0 is CLS, padding at the end.
    attention_mask: bool [b l]; False on padding.
    image_id: uint32 [b 2]; the two halves of a 64-bit hash of the image's identity. Equal ids are the same image.
    text_id: uint32 [b 2], the same of the text's identity; zeros are a text without one, which is no other row's text.
        None unless a task reads it and the data has such identities.
    word: int32 [b l], which word of its text each token belongs to (`data.text.words`); None unless a task reads it.
    label: int32 [b], 1 where image and text match, 0 where they do not; None unless a task reads it.
    """

    images: jax.Array
    input_ids: jax.Array
    attention_mask: jax.Array
    image_id: jax.Array
    word: jax.Array | None = None
    text_id: jax.Array | None = None
    label: jax.Array | None = None

    def words(self) -> jax.Array:
        """`word`, where a task reads it.

        Raises:
            ValueError: the batch was made without.
        """
        if self.word is None:
            raise ValueError("the batch does not say which word each token belongs to; its tokenizer numbers none")
        return self.word

    def labels(self) -> jax.Array:
        """`label`, where a task reads it.

        Raises:
            ValueError: the batch was made without.
        """
        if self.label is None:
            raise ValueError("the batch does not say which of its pairs match; its records have no labels")
        return self.label


@struct.dataclass
class Embedded:
    """What pre-ranking needs of one tower: `feature` and `embed` as those of `Encoded`."""

    feature: jax.Array
    embed: jax.Array


@struct.dataclass
class Encoded:
    """What one tower makes of its input.

    tokens: [b n d] or [b l d], the last hidden states, as the cross encoders read them.
    feature: float32 [b e], the projection of CLS before normalisation.
    embed: float32 [b e], the same with unit norm.
    """

    tokens: jax.Array
    feature: jax.Array
    embed: jax.Array


def exact_if_float32(dtype: Any) -> jax.lax.Precision | None:
    """The precision of a product of numbers of `dtype`.

    Left alone, float32 numbers are rounded before they are multiplied: to bfloat16 on TPUs, to TF32 on GPUs. The
    products of bfloat16 numbers are exact anyhow.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def interleaved(*parts: jax.Array) -> jax.Array:
    """[kb ...] of k arrays [b ...], row by row in turn."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def unit_norm(feature: Float[Array, "... e"]) -> Float[Array, "... e"]:
    """Scales the last axis to length one, in float32."""
    feature = feature.astype(jnp.float32)
    return feature * jax.lax.rsqrt(jnp.maximum(jnp.sum(feature**2, axis=-1, keepdims=True), 1e-24))


@checked
def same_image(row_id: UInt32[Array, "b 2"], column_id: UInt32[Array, "m 2"]) -> Bool[Array, "b m"]:
    """True where a row and a column show the same image."""
    return jnp.all(row_id[:, None, :] == column_id[None, :, :], axis=-1)


@checked
def same_text(row_id: UInt32[Array, "b 2"], column_id: UInt32[Array, "m 2"]) -> Bool[Array, "b m"]:
    """True where a row and a column have the same text by its identity; zeros are no identity and equal nothing."""
    return same_image(row_id, column_id) & jnp.any(row_id != 0, axis=-1, keepdims=True)


def right_pairs(
    image_id: jax.Array, text_id: jax.Array | None, image_keys: jax.Array, text_keys: jax.Array | None
) -> jax.Array:
    """bool [b m], True where a row's image and a column's text belong together, and so the other way round.

    They do if both rows show the same image (published code), or have the same text by its identity (our decision).
    What no row of the batch says is not known: that the image has the column's text as another of its own.

    Args:
        image_id: uint32 [b 2]. image_keys: uint32 [m 2].
        text_id: uint32 [b 2]. text_keys: uint32 [m 2]; None where texts have no identities.
    """
    same = same_image(image_id, image_keys)
    return same if text_id is None or text_keys is None else same | same_text(text_id, text_keys)
