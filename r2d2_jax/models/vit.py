"""The image tower: a vision transformer in CLIP's form."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Float, checked
from r2d2_jax.config.model import ImageTowerConfig
from r2d2_jax.models.layers import EMBEDDING_INIT, Attention, LayerNorm, Mlp, dense, quick_gelu, scanned

EPSILON = 1e-5  # layer-norm epsilon of CLIP (published code)


class VitLayer(nn.Module):
    """One pre-norm transformer layer: h + attention(norm(h)), then h + mlp(norm(h))."""

    config: ImageTowerConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, None]:
        size = self.config
        normed = LayerNorm(EPSILON, name="attention_norm")(hidden)
        hidden = hidden + Attention(size.width, size.heads, self.dtype, name="attention")(normed, normed)
        normed = LayerNorm(EPSILON, name="mlp_norm")(hidden)
        return hidden + Mlp(size.width, size.mlp_width, quick_gelu, self.dtype, name="mlp")(normed), None


class ImageEncoder(nn.Module):
    """CLIP's vision transformer without its last layer norm, which no output of R2D2 reads (published code).

    Attributes:
        config: the sizes.
        dtype: the dtype of the matrix products.
        remat, unroll: see `layers.scanned`.
    """

    config: ImageTowerConfig
    dtype: Any
    remat: str | None = None
    unroll: bool = False

    @nn.compact
    @checked
    def __call__(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """The last hidden states of normalised images: CLS first, then the patches row by row."""
        size = self.config
        patches = patchify(images.astype(self.dtype), size.patch_size)
        embed = dense(size.width, self.dtype, "patch_embedding", use_bias=False, kernel_init=EMBEDDING_INIT)
        # CLIP's initial spread of class and positions: wide enough to matter beside the patches from the start.
        spread = nn.initializers.normal(size.width**-0.5)
        hidden = embed(patches)
        cls = self.param("class_embedding", spread, (size.width,)).astype(self.dtype)
        hidden = jnp.concatenate([jnp.broadcast_to(cls, (len(hidden), 1, size.width)), hidden], axis=1)
        position = self.param("position_embedding", spread, (hidden.shape[1], size.width))
        hidden = LayerNorm(EPSILON, name="pre_norm")(hidden + position.astype(self.dtype))
        stack = scanned(VitLayer, size.layers, remat=self.remat, unroll=self.unroll)
        hidden, _ = stack(size, self.dtype, name="layers")(hidden)
        return hidden


@checked
def patchify(images: Float[Array, "b height width 3"], patch_size: int) -> Float[Array, "b patches pixels"]:
    """Cuts images into square patches, row by row; the pixels of a patch run over row, column, channel."""
    b, height, width, _ = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(b, rows, patch_size, columns, patch_size, 3).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, rows * columns, patch_size * patch_size * 3)
