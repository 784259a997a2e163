"""Dropout: active only where a caller hands a random key to the module, so nothing but a student ever sees it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Bool, Float, checked

DROPOUT = "dropout"  # Flax's name of the random stream
LEVELS = 2**16  # a draw has 16 bits


class Dropout(nn.Module):
    """Sets a share of the values to zero and scales the rest, so that the mean stays.

    Attributes:
        rate: the share, 0 <= p < 1; drawn to the nearest 1 / `LEVELS`, and never all or nothing.
    """

    rate: float

    def active(self) -> bool:
        """Whether anything is dropped: there are a rate and a key."""
        return self.rate > 0 and self.has_rng(DROPOUT)

    @checked
    def __call__(self, values: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """0 with probability p, else value / (1 - p), in float32; returned in the dtype of the values."""
        if not self.active():
            return values
        share = self._dropped_levels() / LEVELS
        scaled = values.astype(jnp.float32) / (1 - share)  # in bfloat16 the factor itself would be off by 0.2 %
        return jnp.where(self.kept(values.shape), scaled, 0).astype(values.dtype)

    def kept(self, shape: tuple[int, ...]) -> jax.Array:
        """bool: True where a value stays; a method, so that `sharding.apply_by_rows` can place the result."""
        return kept_mask(self.make_rng(DROPOUT), shape, self._dropped_levels())

    def _dropped_levels(self) -> int:
        return min(max(1, round(self.rate * LEVELS)), LEVELS - 1)


def kept_mask(key: Any, shape: tuple[int, ...], dropped_levels: int) -> Bool[Array, "..."]:
    """Draws 16 bits for each place; True where the number is not below `dropped_levels`.

    Threefry costs as much for 16 bits as for 32, so each number of 32 serves two places of the last axis: one in its
    first half, which reads the low bits, and one in its second, which reads the high ones. The other axes are drawn
    place by place, so that a device draws for its own rows alone.
    """
    *outer, length = shape
    bits = jax.random.bits(key, (*outer, -(-length // 2)), jnp.uint32)
    halves = [(bits & (LEVELS - 1)) >= dropped_levels, (bits >> 16) >= dropped_levels]
    return jnp.concatenate(halves, axis=-1)[..., :length]
