"""The forwards of a model as compiled functions of a mesh, and the moves of tokens between its devices.

`encoder.py` feeds them with batches from host memory.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2d2_jax.arrays import Array, Bool, Encoded, Float, Int, Params, UInt8, checked
from r2d2_jax.losses.masked_lm import label_log_probability
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.layers import ATTENTION, ATTENTION_CHANGE
from r2d2_jax.models.r2d2 import R2D2, normalise_images
from r2d2_jax.sharding import apply_by_rows, batch_sharding, replicated, whole_kernels


@dataclass(frozen=True)
class CompiledForwards:
    """The jitted functions of one model on one mesh. All take and give rows split over the devices.

    embed_image, embed_text: (params, rows...) -> (feature, embed). encode_image, encode_text: -> `Encoded`.
    match: (params, text tokens, mask, image tokens) -> match probability [b]. cross: the same -> hidden states.
    attention: the same -> what text tokens read of the image, see `text_image_attention`.
    token_log_probabilities: (params, text tokens, mask, image tokens, ids) -> those of each id at its place, [b l].
    take: (tokens [slots n d], slot [b]) -> [b n d]. write: (buffer, tokens, slot) -> buffer. zeros: (shape,
    dtype) -> an empty buffer. replicate: tokens -> the same on every device.
    """

    embed_image: Any
    encode_image: Any
    embed_text: Any
    encode_text: Any
    match: Any
    cross: Any
    attention: Any
    token_log_probabilities: Any
    take: Any
    write: Any
    zeros: Any
    replicate: Any


@functools.lru_cache(maxsize=8)
def compiled_forwards(model: R2D2, mesh: Mesh) -> CompiledForwards:
    """The forwards of a model on a mesh, jitted once in a process; embeddings are the same on every process."""
    apply = lambda params, stage, *inputs: apply_by_rows(model, params, mesh, stage, *inputs)  # noqa: E731

    @checked
    def image(stage: str, params: Params, images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]) -> Any:
        normalised = normalise_images(images) if images.dtype == jnp.uint8 else images
        return apply(params, stage, normalised)

    @checked
    def text(stage: str, params: Params, input_ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Any:
        return apply(params, stage, input_ids, mask)

    @checked
    def match(
        params: Params, text: Float[Array, "b l d"], mask: Bool[Array, "b l"], image: Float[Array, "b n image_d"]
    ) -> Float[Array, " b"]:
        return match_probability(apply(params, "match", text, mask, image))

    @checked
    def cross(
        params: Params, text: Float[Array, "b l d"], mask: Bool[Array, "b l"], image: Float[Array, "b n image_d"]
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b n d"]]:
        return apply(params, "cross_text_image", text, mask, image), apply(
            params, "cross_image_text", text, mask, image
        )

    @checked
    def token_log_probabilities(
        params: Params,
        text: Float[Array, "b l d"],
        mask: Bool[Array, "b l"],
        image: Float[Array, "b n image_d"],
        ids: Int[Array, "b l"],
    ) -> Float[Array, "b l"]:
        logits = apply(params, "masked_lm_logits", apply(params, "cross_text_image", text, mask, image))
        return label_log_probability(logits, ids)

    embeddings = lambda embedded: (embedded.feature, embedded.embed)  # noqa: E731
    rows, whole = batch_sharding(mesh), replicated(mesh)
    compiled = partial(jax.jit, compiler_options=whole_kernels(mesh))
    jitted = partial(compiled, out_shardings=whole)
    encoded = partial(compiled, out_shardings=Encoded(rows, whole, whole))  # type: ignore[arg-type]
    return CompiledForwards(
        embed_image=jitted(lambda *inputs: embeddings(image("embed_image", *inputs))),
        encode_image=encoded(partial(image, "encode_image")),
        embed_text=jitted(lambda *inputs: embeddings(text("embed_text", *inputs))),
        encode_text=encoded(partial(text, "encode_text")),
        match=jitted(match),
        cross=jitted(cross),
        attention=jitted(partial(text_image_attention, model, mesh=mesh)),
        token_log_probabilities=jitted(token_log_probabilities),
        take=jax.jit(partial(take_rows, mesh=mesh)),
        write=jax.jit(partial(write_rows, mesh=mesh), donate_argnums=0),
        zeros=jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=rows),
        replicate=jitted(lambda tokens: tokens),
    )


@checked
def text_image_attention(
    model: R2D2,
    params: Params,
    text: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    image: Float[Array, "b n image_d"],
    mesh: Mesh,
) -> tuple[Float[Array, "b k h l n"], Float[Array, "b k h l n"]]:
    """What the `k` layers of the text-image cross encoder read of the image, and how much the match depends on it.

    Returns:
        weights: the softmax weights of each head, by text token and image token; they sum to one over the image.
        gradient: the derivative of `R2D2.text_image_log_odds` by each of them.
    """
    pairs = (text, mask, image)
    stage = partial(apply_by_rows, model, params, mesh, "text_image_log_odds", *pairs, mutable=[ATTENTION])

    def log_odds(change: Params) -> tuple[jax.Array, Any]:
        found, stored = stage(variables={ATTENTION_CHANGE: change})
        return found.sum(), _cross_attention(stored[ATTENTION], lambda sown: sown[0])

    shapes = jax.eval_shape(stage)[1][ATTENTION]
    unchanged = _cross_attention(shapes, lambda sown: jnp.zeros(sown[0].shape, sown[0].dtype))
    gradient, weights = jax.grad(log_odds, has_aux=True)(unchanged)
    return _by_layer(weights), _by_layer(gradient)


def _cross_attention(stored: Params, leaf: Callable[[Any], Any]) -> Params:
    """`leaf` of what each cross-attention of the text-image cross encoder has stored, and nothing else."""
    stacks = stored["text_image_encoder"]
    parts = {name: {"cross_attention": {"weights": leaf(stack["cross_attention"]["weights"])}}
             for name, stack in stacks.items()}  # fmt: skip
    return {"text_image_encoder": parts}


def _by_layer(parts: Params) -> jax.Array:
    """[b k h l n] of the scanned layers and the last one."""
    stacks = parts["text_image_encoder"]
    last = stacks["last_layer"]["cross_attention"]["weights"]
    scanned = [stacks["layers"]["cross_attention"]["weights"]] if "layers" in stacks else []
    return jnp.moveaxis(jnp.concatenate([*scanned, last[None]]), 0, 1)


@checked
def take_rows(values: Float[Array, "slots n d"], slot: Int[Array, " b"], mesh: Mesh) -> Float[Array, "b n d"]:
    """`values[slot]`, both split by rows, moving no more than the rows that are wanted.

    Every device contributes the wanted rows that lie on it, and zeros for the others; their sum, which is exact, is
    split by rows again.
    """
    spec = batch_sharding(mesh).spec

    def on_device(own: jax.Array, slot: jax.Array) -> jax.Array:
        place = slot - len(own) * jax.lax.axis_index(mesh.axis_names)
        here = (place >= 0) & (place < len(own))
        wanted = jnp.where(here[:, None, None], own[jnp.where(here, place, 0)], 0)
        return jax.lax.psum_scatter(wanted, mesh.axis_names, scatter_dimension=0, tiled=True)

    whole = replicated(mesh).spec
    return jax.shard_map(on_device, mesh=mesh, in_specs=(spec, whole), out_specs=spec)(values, slot)


@checked
def write_rows(
    buffer: Float[Array, "slots n d"], tokens: Float[Array, "b n d"], start: Int[Array, ""], mesh: Mesh
) -> Float[Array, "slots n d"]:
    """The buffer with each device's rows of `tokens` at `start` of that device's part of the buffer."""
    spec, whole = batch_sharding(mesh).spec, replicated(mesh).spec
    update = lambda own, rows, start: jax.lax.dynamic_update_slice(own, rows, (start, 0, 0))  # noqa: E731
    return jax.shard_map(update, mesh=mesh, in_specs=(spec, spec, whole), out_specs=spec)(buffer, tokens, start)
