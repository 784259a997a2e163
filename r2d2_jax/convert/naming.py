"""Which parameter of ours holds a tensor of another framework, and how its axes are turned.

Our transformer layers are stacked along a leading axis, and the last layer of a cross encoder stands apart; elsewhere
layers are numbered. PyTorch keeps a linear layer's weight as [out, in], we as [in, out]; a patch embedding is a
convolution [d, 3, patch, patch] there and a matrix over the pixels of a patch, [patch * patch * 3, d], here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted
from r2d2_jax.models.r2d2 import R2D2, abstract_params
from r2d2_jax.trees import flat, nested

Tensors = Mapping[str, np.ndarray]
Turn = Literal["none", "linear", "patches"]


@dataclass(frozen=True)
class TensorPlace:
    """One tensor's place: `path` among our parameters, `layer` its index on the leading axis of a stack, if any."""

    path: str
    layer: int | None = None
    turn: Turn = "none"


def norm(theirs: str, ours: str) -> dict[str, TensorPlace]:
    """A layer norm."""
    return {f"{theirs}.weight": TensorPlace(f"{ours}/norm/scale"), f"{theirs}.bias": TensorPlace(f"{ours}/norm/bias")}


def linear(theirs: str, ours: str) -> dict[str, TensorPlace]:
    """A linear layer with a bias."""
    return {
        f"{theirs}.weight": TensorPlace(f"{ours}/kernel", turn="linear"),
        f"{theirs}.bias": TensorPlace(f"{ours}/bias"),
    }


def below(
    theirs: str, ours: str, places: Mapping[str, TensorPlace], layer: int | None = None
) -> dict[str, TensorPlace]:
    """The same tensors under a prefix on both sides; `layer` puts them into a stack."""
    prefix = f"{ours}/" if ours else ""
    return {
        f"{theirs}{name}": TensorPlace(f"{prefix}{place.path}", place.layer if layer is None else layer, place.turn)
        for name, place in places.items()
    }


CLIP_LAYER = {
    **norm("layer_norm1", "attention_norm"),
    **linear("self_attn.q_proj", "attention/query"),
    **linear("self_attn.k_proj", "attention/key"),
    **linear("self_attn.v_proj", "attention/value"),
    **linear("self_attn.out_proj", "attention/out"),
    **norm("layer_norm2", "mlp_norm"),
    **linear("mlp.fc1", "mlp/up"),
    **linear("mlp.fc2", "mlp/down"),
}


def _bert_attention(theirs: str, ours: str) -> dict[str, TensorPlace]:
    return {
        **linear(f"{theirs}.self.query", f"{ours}/query"),
        **linear(f"{theirs}.self.key", f"{ours}/key"),
        **linear(f"{theirs}.self.value", f"{ours}/value"),
        **linear(f"{theirs}.output.dense", f"{ours}/out"),
        **norm(f"{theirs}.output.LayerNorm", f"{ours}_norm"),
    }


_BERT_MLP = {
    **linear("intermediate.dense", "mlp/up"),
    **linear("output.dense", "mlp/down"),
    **norm("output.LayerNorm", "mlp_norm"),
}
BERT_LAYER = _bert_attention("attention", "attention") | _BERT_MLP
CROSS_LAYER = (
    _bert_attention("attention", "self_attention") | _bert_attention("crossattention", "cross_attention") | _BERT_MLP
)


def clip_vision(layers: int) -> dict[str, TensorPlace]:
    """The image tower under transformers' names of `CLIPVisionModel`, below `vision_model.`; ours: `image_encoder`."""
    places = {
        "embeddings.class_embedding": TensorPlace("class_embedding"),
        "embeddings.patch_embedding.weight": TensorPlace("patch_embedding/kernel", turn="patches"),
        "embeddings.position_embedding.weight": TensorPlace("position_embedding"),
        **norm("pre_layrnorm", "pre_norm"),  # so spelled in transformers
    }
    for layer in range(layers):
        places |= below(f"encoder.layers.{layer}.", "layers", CLIP_LAYER, layer)
    return below("", "image_encoder", places)


def bert(layers: int) -> dict[str, TensorPlace]:
    """The text tower under transformers' names of `BertModel`; ours: `text_encoder`."""
    places = {
        "embeddings.word_embeddings.weight": TensorPlace("word_embedding/embedding"),
        "embeddings.position_embeddings.weight": TensorPlace("position_embedding/embedding"),
        "embeddings.token_type_embeddings.weight": TensorPlace("type_embedding/embedding"),
        **norm("embeddings.LayerNorm", "embedding_norm"),
    }
    for layer in range(layers):
        places |= below(f"encoder.layer.{layer}.", "layers", BERT_LAYER, layer)
    return below("", "text_encoder", places)


def cross_encoder(layers: int) -> dict[str, TensorPlace]:
    """One cross encoder under the published names, which are those of a BERT decoder without embeddings."""
    places: dict[str, TensorPlace] = {}
    for layer in range(layers - 1):
        places |= below(f"encoder.layer.{layer}.", "layers", CROSS_LAYER, layer)
    return places | below(f"encoder.layer.{layers - 1}.", "last_layer", CROSS_LAYER)


def our_shapes(config: ModelConfig, *, masked_lm: bool = False) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a model; cross encoders as far as the sizes have them."""
    model = R2D2(config, matching=bool(config.cross.layers), masked_lm=masked_lm)
    return {path: leaf.shape for path, leaf in flat(abstract_params(model))}


def their_shape(place: TensorPlace, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The other framework's shape of the tensor at `place`; `shape` is our whole parameter's."""
    if place.layer is not None:
        shape = shape[1:]
    if place.turn == "patches":
        patch = math.isqrt(shape[0] // 3)
        return (shape[1], 3, patch, patch)
    return shape[::-1] if place.turn == "linear" else shape


def to_ours(tensors: Tensors, places: Mapping[str, TensorPlace], shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Puts every tensor of `places` where it belongs, as float32.

    Args:
        tensors: name -> tensor; has every name of `places`, with the right shape.
        places: name -> place.
        shapes: our path -> shape of the whole parameter.

    Returns:
        Our parameters, nested, in new memory.
    """
    leaves: dict[str, np.ndarray] = {}
    for name, place in places.items():
        if place.path not in leaves:
            leaves[place.path] = np.empty(shapes[place.path], np.float32)
        whole = leaves[place.path]
        target = whole[...] if place.layer is None else whole[place.layer, ...]
        tensor = tensors[name]
        if place.turn == "patches":
            tensor = tensor.transpose(2, 3, 1, 0).reshape(target.shape)
        elif place.turn == "linear":
            tensor = tensor.T
        target[...] = tensor
    return nested(leaves)


def to_theirs(params: Params, places: Mapping[str, TensorPlace]) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`: name -> contiguous float32 tensor."""
    leaves = dict(flat(params))
    tensors = {}
    for name, place in places.items():
        tensor = np.asarray(leaves[place.path], np.float32)
        if place.layer is not None:
            tensor = tensor[place.layer, ...]
        if place.turn == "patches":
            patch = math.isqrt(len(tensor) // 3)
            tensor = tensor.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
        elif place.turn == "linear":
            tensor = tensor.T
        tensors[name] = tensor.copy(order="C")
    return tensors


def assembled(
    tensors: Tensors,
    places: Mapping[str, TensorPlace],
    leftover: Mapping[str, str],
    config: ModelConfig,
    source: str,
    *,
    masked_lm: bool = False,
) -> tuple[Params, list[str]]:
    """Our parameters, from tensors that must be exactly those of `places`, and the names of other, `leftover` ones.

    Args:
        tensors: name -> tensor, as read.
        places: name -> place of every required tensor.
        leftover, source: see `check_tensors`.
        config: the sizes that the parameters must have.
        masked_lm: the model has a masked-language-model head.

    Raises:
        UserError: lists every name that is missing, unexpected, of another shape or type, or not finite.
    """
    shapes = our_shapes(config, masked_lm=masked_lm)
    expected = {name: their_shape(place, shapes[place.path]) for name, place in places.items()}
    unused = check_tensors(tensors, expected, leftover, source)
    check_finite({name: tensors[name] for name in places}, source)
    return to_ours(tensors, places, shapes), unused


def check_tensors(
    tensors: Tensors, expected: Mapping[str, tuple[int, ...]], leftover: Mapping[str, str], source: str
) -> list[str]:
    """Refuses missing, unexpected and mis-shaped tensors, and whole numbers.

    Args:
        tensors: name -> tensor, as read.
        expected: name -> shape of every required tensor.
        leftover: regular expression -> reason, for names that may occur although nothing reads them.
        source: the path of the tensors, for the message.

    Returns:
        The names that are left over.

    Raises:
        UserError: lists every name that is missing, unexpected, or of another shape or type.
    """
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    unused = []
    for name, tensor in tensors.items():
        if name in expected:
            if tensor.shape != expected[name]:
                problems.append(f"shape: {name} is {list(tensor.shape)}, expected {list(expected[name])}")
            elif not np.issubdtype(tensor.dtype, np.floating):
                problems.append(f"type: {name} is {tensor.dtype}, expected floating-point numbers")
        elif any(re.fullmatch(pattern, name) for pattern in leftover):
            unused.append(name)
        else:
            problems.append(f"unexpected: {name} {list(tensor.shape)}")
    if problems:
        raise UserError(
            f"{source} does not hold the tensors of such a model; check that it is the right file. "
            f"{len(problems)} name(s) differ:\n{bulleted(problems)}"
        )
    return unused


def check_finite(tensors: Tensors, source: str) -> None:
    """Raises UserError, with the name of every tensor that holds NaN or infinity and how many of them."""
    problems = []
    for name, tensor in tensors.items():
        if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
            nan, infinite = int(np.isnan(tensor).sum()), int(np.isinf(tensor).sum())
            problems.append(f"{name} {list(tensor.shape)}: {nan} NaN, {infinite} infinite of {tensor.size}")
    if problems:
        raise UserError(
            f"{source} holds weights that are not finite; take a checkpoint from before training failed, or fetch it "
            f"again. {len(problems)} tensor(s), the first {FIRST_NAMES} at most:\n{bulleted(problems[:FIRST_NAMES])}"
        )
