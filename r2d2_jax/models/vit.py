"""The image tower: a vision transformer in CLIP's form."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Float, checked
from r2d2_jax.config.model import ImageTowerConfig
from r2d2_jax.models.layers import EMBEDDING_INIT, Attention, LayerNorm, Mlp, cls_of_stack, dense, quick_gelu, scanned

EPSILON = 1e-5  # layer-norm epsilon of CLIP (published code)


class VitLayer(nn.Module):
    """One pre-norm transformer layer: h + attention(norm(h)), then h + mlp(norm(h)).

    With `cls_alone` its result is that of the first token, [b 1 d].
    """

    config: ImageTowerConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, cls_alone: bool = False) -> tuple[jax.Array, None]:
        size, wanted = self.config, slice(1) if cls_alone else slice(None)
        normed = LayerNorm(EPSILON, name="attention_norm")(hidden)
        attention = Attention(size.width, size.heads, self.dtype, name="attention")
        hidden = hidden[:, wanted] + attention(normed[:, wanted], normed)
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
    remat: str = "none"
    unroll: bool = False

    def setup(self) -> None:
        size = self.config
        # CLIP's initial spread of class and positions: wide enough to matter beside the patches from the start.
        spread = nn.initializers.normal(size.width**-0.5)
        self.patch_embedding = dense(size.width, self.dtype, use_bias=False, kernel_init=EMBEDDING_INIT)
        self.class_embedding = self.param("class_embedding", spread, (size.width,))
        self.position_embedding = self.param("position_embedding", spread, (size.patches + 1, size.width))
        self.pre_norm = LayerNorm(EPSILON)
        stack = scanned(VitLayer, size.layers, remat=self.remat, unroll=self.unroll)
        self.layers = stack(size, self.dtype)

    @checked
    def __call__(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """The last hidden states of normalised images: CLS first, then the patches row by row."""
        hidden, _ = self.layers(self._embedded(images))
        return hidden

    @checked
    def cls(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b 1 d"]:
        """The last hidden state of CLS alone; see `layers.cls_of_stack`."""
        layer, stacked = VitLayer(self.config, self.dtype, parent=None), self.variables["params"]["layers"]
        return cls_of_stack(layer, stacked, self._embedded(images), unroll=self.unroll)

    def _embedded(self, images: jax.Array) -> jax.Array:
        patches = patchify(images.astype(self.dtype), self.config.patch_size)
        hidden, cls = self.patch_embedding(patches), self.class_embedding.astype(self.dtype)
        hidden = jnp.concatenate([jnp.broadcast_to(cls, (len(hidden), 1, self.config.width)), hidden], axis=1)
        return self.pre_norm(hidden + self.position_embedding.astype(self.dtype))


@checked
def patchify(images: Float[Array, "b height width 3"], patch_size: int) -> Float[Array, "b patches pixels"]:
    """Cuts images into square patches, row by row; the pixels of a patch run over row, column, channel."""
    b, height, width, _ = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(b, rows, patch_size, columns, patch_size, 3).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, rows * columns, patch_size * patch_size * 3)
