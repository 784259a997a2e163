"""Position embeddings of an image tower for another image size."""

import math

import jax
import numpy as np

from r2d2_jax.errors import UserError


def interpolated(old: int, new: int) -> str:
    """The note about `resized_positions` for the log."""
    return f"position embeddings: interpolated from {old} to {new} patches"


def resized_positions(positions: np.ndarray, patches: int, source: str) -> np.ndarray:
    """Interpolates bicubically, with antialiasing when it shrinks; CLS keeps its own embedding.

    Args:
        positions: [1 + side * side, d], CLS first, then the patches row by row.
        patches: the wanted number of patches, a square.
        source: the path of the embeddings, for messages.

    Returns:
        [1 + patches, d].

    Raises:
        UserError: either number is no square.
    """
    old, new = math.isqrt(len(positions) - 1), math.isqrt(patches)
    if old * old != len(positions) - 1 or new * new != patches:
        raise UserError(
            f"{source}: cannot interpolate from {len(positions) - 1} to {patches} patches; both must be squares"
        )
    grid = positions[1:].reshape(old, old, -1)
    resized = jax.image.resize(grid, (new, new, grid.shape[-1]), method="bicubic")
    return np.concatenate([positions[:1], np.asarray(resized).reshape(patches, -1)])
