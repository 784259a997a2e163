"""Published PyTorch R2D2 and PRD2 checkpoints <-> our parameters, bit by bit.

The names and shapes are those of the published checkpoints. PRD2 is R2D2 without everything that has "joint" or "itm"
in its name.
"""

import math
import re
from pathlib import Path

import numpy as np

from r2d2_jax.config.model import CrossEncoderConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from r2d2_jax.convert.naming import (
    TensorPlace,
    Tensors,
    assembled,
    below,
    bert,
    check_finite,
    clip_vision,
    cross_encoder,
    linear,
    to_theirs,
)
from r2d2_jax.convert.tensor_files import TensorFile, read_tensor_file
from r2d2_jax.convert.wrappings import one_model
from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model

ANCHOR = "visual_encoder.embeddings.patch_embedding.weight"  # finds the model in a file that holds more
HEAD_WIDTH = 64  # published rule: a tower of width d has d // 64 heads
TEXT_LENGTH = 64  # published code: texts are padded or cut to 64 tokens

# Tensors of a published checkpoint that no output reads. They may be absent; those that were read are written again.
LEFTOVER = {
    r"(visual_encoder|text_encoder|text_joint_layer|img_joint_layer)\.embeddings\.position_ids": "0, 1, 2, ...",
    r"visual_encoder\.post_layernorm\.(weight|bias)": "image tokens are taken before CLIP's last norm",
    r"text_encoder\.pooler\.dense\.(weight|bias)": "text features come from CLS itself",
    r"(text|img)_joint_layer\.embeddings\.(word_embeddings|position_embeddings|LayerNorm)\.(weight|bias)": (
        "cross encoders are fed with tower tokens"
    ),
}


def read_published(path: Path) -> TensorFile:
    """The tensors of a published checkpoint under their published names, whatever was wrapped around it.

    Raises:
        UserError: see `read_tensor_file`; or it holds several such models.
    """
    file = read_tensor_file(path)
    model = one_model(file.tensors, (ANCHOR,), str(path))
    return TensorFile(model.inside, (*file.notes, *model.notes()))


def from_published(
    tensors: Tensors, source: str, *, image_heads: int | None = None, text_heads: int | None = None
) -> Model:
    """Reads a published state dict.

    Args:
        tensors: published name -> tensor.
        source: the path of the tensors, for messages.
        image_heads, text_heads: heads of the image tower, and of the text tower and cross encoders, which no shape
            reveals; None means the published rule, one head per 64 channels.

    Raises:
        UserError: lists every name that is missing, unexpected, of another shape or type, or not finite.
    """
    config = sizes_of(tensors, source, image_heads, text_heads)
    params, unused = assembled(tensors, published_places(config), LEFTOVER, config, source)
    check_finite({name: tensors[name] for name in unused}, source)
    return Model(config, params, {name: np.array(tensors[name]) for name in unused}, maps_punctuation=False)


def to_published(model: Model) -> dict[str, np.ndarray]:
    """The published state dict: parameters, then the tensors that no output reads.

    The latter are written as they were read. A model that was never published gets all of them, position ids counted
    and the rest zero, so that the published classes load it with strict=True.

    Raises:
        UserError: the model was trained without parts that are published.
    """
    return published_parameters(model) | (model.unused or blank_unused(model.config))


def published_parameters(model: Model) -> dict[str, np.ndarray]:
    """The tensors of the published state dict that an output reads.

    Raises:
        UserError: the model was trained without parts that are published.
    """
    places = published_places(model.config)
    absent = sorted({place.path.split("/")[0] for place in places.values()} - set(model.params))
    if absent:
        raise UserError(f"the model lacks {', '.join(absent)}; a published checkpoint has them, so none can be written")
    return to_theirs(model.params, places)


def published_places(config: ModelConfig) -> dict[str, TensorPlace]:
    """Published name -> place of every tensor that an output reads."""
    places = {
        "temp": TensorPlace("temperature"),
        **below("visual_encoder.", "", clip_vision(config.image.layers)),
        **below("text_encoder.", "", bert(config.text.layers)),
        **linear("vision_proj", "image_projection"),
        **linear("text_proj", "text_projection"),
    }
    if config.cross.layers:
        places |= below("text_joint_layer.", "text_image_encoder", cross_encoder(config.cross.layers))
        places |= below("img_joint_layer.", "image_text_encoder", cross_encoder(config.cross.layers))
        places |= linear("img_joint_proj", "image_text_projection")
        places |= linear("itm_head", "text_image_match_head") | linear("itm_head_i", "image_text_match_head")
    return places


def blank_unused(config: ModelConfig) -> dict[str, np.ndarray]:
    """Published name -> value of the tensors that no output reads, for a model that has none."""
    image, text = config.image, config.text
    tensors = {
        "visual_encoder.embeddings.position_ids": _counted(image.patches + 1),
        "visual_encoder.post_layernorm.weight": _zeros(image.width),
        "visual_encoder.post_layernorm.bias": _zeros(image.width),
        "text_encoder.embeddings.position_ids": _counted(text.max_positions),
        "text_encoder.pooler.dense.weight": _zeros(text.width, text.width),
        "text_encoder.pooler.dense.bias": _zeros(text.width),
    }
    for joint in ("text_joint_layer", "img_joint_layer") if config.cross.layers else ():
        tensors[f"{joint}.embeddings.position_ids"] = _counted(text.max_positions)
        tensors[f"{joint}.embeddings.word_embeddings.weight"] = _zeros(text.vocabulary_size, config.cross.width)
        tensors[f"{joint}.embeddings.position_embeddings.weight"] = _zeros(text.max_positions, config.cross.width)
        tensors[f"{joint}.embeddings.LayerNorm.weight"] = _zeros(config.cross.width)
        tensors[f"{joint}.embeddings.LayerNorm.bias"] = _zeros(config.cross.width)
    return tensors


def sizes_of(
    tensors: Tensors, source: str, image_heads: int | None = None, text_heads: int | None = None
) -> ModelConfig:
    """The sizes of a model, from the shapes of its published tensors."""
    patch = _shape(tensors, ANCHOR, 4, source)
    positions = _shape(tensors, "visual_encoder.embeddings.position_embedding.weight", 2, source)[0]
    words = _shape(tensors, "text_encoder.embeddings.word_embeddings.weight", 2, source)
    max_positions = _shape(tensors, "text_encoder.embeddings.position_embeddings.weight", 2, source)[0]
    types = _shape(tensors, "text_encoder.embeddings.token_type_embeddings.weight", 2, source)[0]
    cross_layers = _count(tensors, r"text_joint_layer\.encoder\.layer\.(\d+)\..*")
    cross_mlp = "text_joint_layer.encoder.layer.0.intermediate.dense.weight"
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise UserError(f"{source} has {positions} image positions; expected CLS and a square of patches")
    return ModelConfig(
        image=ImageTowerConfig(
            image_size=side * patch[2],
            patch_size=patch[2],
            width=patch[0],
            layers=_count(tensors, r"visual_encoder\.encoder\.layers\.(\d+)\..*"),
            heads=_heads("image_heads", image_heads, patch[0], source),
            mlp_width=_shape(tensors, "visual_encoder.encoder.layers.0.mlp.fc1.weight", 2, source)[0],
        ),
        text=TextTowerConfig(
            vocabulary_size=words[0],
            text_length=min(TEXT_LENGTH, max_positions),
            width=words[1],
            layers=_count(tensors, r"text_encoder\.encoder\.layer\.(\d+)\..*"),
            heads=_heads("text_heads", text_heads, words[1], source),
            mlp_width=_shape(tensors, "text_encoder.encoder.layer.0.intermediate.dense.weight", 2, source)[0],
            max_positions=max_positions,
            token_types=types,
        ),
        cross=CrossEncoderConfig(
            layers=cross_layers,
            width=words[1],
            heads=_heads("text_heads", text_heads, words[1], source),
            mlp_width=_shape(tensors, cross_mlp, 2, source)[0] if cross_layers else 4 * words[1],
        ),
        embed_size=_shape(tensors, "vision_proj.weight", 2, source)[0],
        dtype="float32",
    )


def _heads(name: str, given: int | None, width: int, source: str) -> int:
    heads = max(1, width // HEAD_WIDTH) if given is None else given
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(
            f"{name} is {heads} and the width in {source} {width}; expected a divisor of it: give the model's own "
            f"number as {name}"
        )
    return heads


def _shape(tensors: Tensors, name: str, axes: int, source: str) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(
            f"{source} is no R2D2 or PRD2 checkpoint: it has no tensor {name}; check that it is the right file"
        )
    if tensors[name].ndim != axes:
        raise UserError(f"{source}: {name} has the shape {list(tensors[name].shape)}, expected {axes} axes")
    return tensors[name].shape


def _count(tensors: Tensors, pattern: str) -> int:
    numbers = {int(match[1]) for name in tensors if (match := re.fullmatch(pattern, name))}
    return max(numbers, default=-1) + 1


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _counted(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int64)[None]
