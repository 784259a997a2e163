"""Initial weights of the towers: CLIP's image tower and BERT's or RoBERTa's text tower, in their usual layouts.

Image towers: transformers' `CLIPVisionModel` and `CLIPModel`, OpenAI's CLIP and Chinese-CLIP, whose visual tower is
OpenAI's. Text towers: `BertModel` and `BertForMaskedLM`, under which RoBERTa-wwm-ext is published.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.config.model import ImageTowerConfig, ModelConfig
from r2d2_jax.convert.naming import (
    TensorPlace,
    Tensors,
    assembled,
    bert,
    clip_vision,
    linear,
    norm,
)
from r2d2_jax.convert.resize import interpolated, resized_positions
from r2d2_jax.convert.tensor_files import read_tensors
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.paths import user_path

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# The tensors of a CLIP checkpoint that R2D2 does not read.
CLIP_LEFTOVER = {
    r"(vision_model\.)?embeddings\.position_ids": "0, 1, 2, ...",
    r"(vision_model\.)?post_layernorm\.(weight|bias)": "image tokens are taken before CLIP's last norm",
    r"(text_model|text_projection|visual_projection|logit_scale).*": "CLIP's text tower and projections",
}
# The tensors of a BERT checkpoint that are neither of the text tower nor of the masked-language-model head.
BERT_LEFTOVER = {
    r"embeddings\.position_ids": "0, 1, 2, ...",
    r"pooler\.dense\.(weight|bias)": "text features come from CLS itself",
    r"cls\.seq_relationship\.(weight|bias)": "next-sentence prediction",
    r"cls\.predictions\.decoder\.(weight|bias)": "tied to the word embeddings and to cls.predictions.bias",
}
MASKED_LM_HEAD = {
    **linear("cls.predictions.transform.dense", "masked_lm_head/transform"),
    **norm("cls.predictions.transform.LayerNorm", "masked_lm_head/transform_norm"),
    "cls.predictions.bias": TensorPlace("masked_lm_head/bias"),
}


@dataclass(frozen=True)
class Weights:
    """Parameters for a part of a model.

    Attributes:
        params: nested dicts of float32 arrays: `image_encoder`, or `text_encoder` and perhaps `masked_lm_head`.
        notes: one line for each group of tensors that was left out or changed, with the reason.
    """

    params: Params
    notes: tuple[str, ...]


def image_tower(name: str, config: ModelConfig, *, resize_positions: bool = False) -> Weights:
    """Reads an image tower.

    Args:
        name: a file, a folder with one of WEIGHT_FILES, or a name on the Hugging Face hub.
        config: the sizes that the tower must have.
        resize_positions: interpolate the position embeddings bicubically if they are for another image size.

    Raises:
        UserError: there are no such weights, or they are of another size; lists every name that differs.
    """
    path = located(name)
    tensors = _openai_renamed(read_tensors(path), path, config.image)
    prefixed = any(key.startswith("vision_model.") for key in tensors)
    tensors = {key.removeprefix("vision_model."): tensor for key, tensor in tensors.items()}
    notes = []
    position = "embeddings.position_embedding.weight"
    patches = config.image.patches
    if resize_positions and position in tensors and len(tensors[position]) != patches + 1:
        notes.append(interpolated(len(tensors[position]) - 1, patches))
        tensors[position] = resized_positions(tensors[position], patches, str(path))
    leftover = CLIP_LEFTOVER if prefixed else dict(list(CLIP_LEFTOVER.items())[:2])
    params, unused = _explained(tensors, clip_vision(config.image.layers), leftover, config, str(path))
    return Weights(params, (*notes, *unused))


def text_tower(name: str, config: ModelConfig, *, masked_lm: bool, fewer_tokens: bool = False) -> Weights:
    """Reads a text tower, and with `masked_lm` the masked-language-model head where the checkpoint has one.

    Args:
        name: a file, a folder with one of WEIGHT_FILES, or a name on the Hugging Face hub.
        config: the sizes that the tower must have.
        masked_lm: the model has a masked-language-model head.
        fewer_tokens: take a tower with fewer word embeddings than `config` has tokens, as it is.

    Raises:
        UserError: there are no such weights, or they are of another size; lists every name that differs.
    """
    path = located(name)
    tensors = {_modern(key): tensor for key, tensor in read_tensors(path).items()}
    has_head = "cls.predictions.bias" in tensors
    places = bert(config.text.layers)
    if fewer_tokens:
        config = _with_tokens_of(tensors, config)
    leftover = dict(BERT_LEFTOVER)
    if masked_lm and has_head:
        places |= MASKED_LM_HEAD
    else:
        leftover[r"cls\.predictions\..*"] = "the model has no masked-language-model head"
    params, notes = _explained(tensors, places, leftover, config, str(path), masked_lm=masked_lm and has_head)
    if masked_lm and not has_head:
        notes = (*notes, "masked-language-model head: not in the checkpoint, starts random")
    return Weights(params, notes)


def located(name: str) -> Path:
    """The file of weights behind a path or hub name.

    Raises:
        UserError: there is none.
    """
    path = user_path(name)
    if path.is_dir():
        for file in WEIGHT_FILES:
            if (path / file).is_file():
                return path / file
        raise UserError(
            f"{path} holds none of {', '.join(WEIGHT_FILES)}; expected a transformers folder, or name a file"
        )
    if path.is_file():
        return path
    if path.suffix or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"initial weights {name} do not exist; expected a file, a folder or a hub name")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    errors = []
    for file in WEIGHT_FILES:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file))
        except Exception as error:
            errors.append(f"{file}: {first_line(error)}")
    raise UserError(
        f"initial weights {name!r} are neither a file or folder here nor weights that the Hugging Face hub gave "
        f"({'; '.join(errors)}). Correct the name, or download the folder and name its path"
    )


def _explained(
    tensors: Tensors,
    places: Mapping[str, TensorPlace],
    leftover: Mapping[str, str],
    config: ModelConfig,
    source: str,
    *,
    masked_lm: bool = False,
) -> tuple[Params, tuple[str, ...]]:
    params, unused = assembled(tensors, places, leftover, config, source, masked_lm=masked_lm)
    notes = []
    for pattern, reason in leftover.items():
        names = [name for name in unused if re.fullmatch(pattern, name)]
        if names:
            notes.append(f"left out {len(names)} tensor(s), {names[0]} first: {reason}")
    return params, tuple(notes)


def _with_tokens_of(tensors: Tensors, config: ModelConfig) -> ModelConfig:
    """The sizes with as many tokens as there are word embeddings, if these are fewer."""
    rows, tokens = tensors.get("embeddings.word_embeddings.weight", ()), config.text.vocabulary_size
    text = dataclasses.replace(config.text, vocabulary_size=min(len(rows) or tokens, tokens))
    return dataclasses.replace(config, text=text)


def _modern(name: str) -> str:
    """The current name of a BERT tensor in transformers: without the prefix `bert.`, norms with PyTorch's names."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _openai_renamed(tensors: Tensors, path: Path, config: ImageTowerConfig) -> dict[str, np.ndarray]:
    """OpenAI's and Chinese-CLIP's visual tower under transformers' names; other layouts are returned as they are."""
    visual = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    if "conv1.weight" not in visual:
        return dict(tensors)
    renamed = {}
    for name, tensor in visual.items():
        if name == "proj":
            continue  # CLIP's own projection; R2D2 has one of its own width
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            prefix = f"vision_model.encoder.layers.{match[1]}.self_attn"
            for part, rows in zip("qkv", np.split(tensor, 3), strict=True):
                renamed[f"{prefix}.{part}_proj.{match[2]}"] = rows
        else:
            renamed[_openai_name(name)] = tensor
    return renamed


OPENAI_NAMES = {
    r"conv1\.weight": "embeddings.patch_embedding.weight",
    r"class_embedding": "embeddings.class_embedding",
    r"positional_embedding": "embeddings.position_embedding.weight",
    r"ln_pre\.(weight|bias)": r"pre_layrnorm.\1",
    r"ln_post\.(weight|bias)": r"post_layernorm.\1",
    r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)": r"encoder.layers.\1.self_attn.out_proj.\2",
    r"transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)": r"encoder.layers.\1.layer_norm\2.\3",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"encoder.layers.\1.mlp.fc1.\2",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"encoder.layers.\1.mlp.fc2.\2",
}


def _openai_name(name: str) -> str:
    for pattern, modern in OPENAI_NAMES.items():
        if re.fullmatch(pattern, name):
            return "vision_model." + re.sub(pattern, modern, name)
    return f"visual.{name}"  # `check_tensors` refuses it under its name in the file
