"""Initial weights of the towers: CLIP's image tower and BERT's or RoBERTa's text tower, in their usual layouts.

Image towers: transformers' `CLIPVisionModel` and `CLIPModel`, OpenAI's CLIP and Chinese-CLIP, whose visual tower is
OpenAI's. Text towers: `BertModel` and `BertForMaskedLM`, under which RoBERTa-wwm-ext is published. Either may lie
within a larger model: the tower is found, and the rest is left out and named.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.config.model import ModelConfig
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
from r2d2_jax.convert.tensor_files import INDEX, read_tensor_file
from r2d2_jax.convert.wrappings import OneModel, listed, one_model
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.paths import user_path

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = tuple(f"{name}{INDEX}" for name in WEIGHT_FILES)  # of weights in several files

# A tensor that every tower has, without what its names begin with: transformers' and OpenAI's image tower, and BERT.
IMAGE_ANCHORS = ("embeddings.patch_embedding.weight", "conv1.weight")
TEXT_ANCHORS = ("embeddings.word_embeddings.weight",)
# What the names of a tower begin with where they have no prefix; all else is beside the tower.
IMAGE_WORDS = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
OPENAI_WORDS = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "ln_post", "transformer", "proj")
TEXT_WORDS = ("embeddings", "encoder", "pooler")

# The tensors of CLIP's image tower that R2D2 does not read.
CLIP_LEFTOVER = {
    r"embeddings\.position_ids": "0, 1, 2, ...",
    r"post_layernorm\.(weight|bias)": "image tokens are taken before CLIP's last norm",
}
# The tensors of a BERT that are neither of the text tower nor of the masked-language-model head.
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

OTHER_FRAMEWORKS = ("tf_model.h5", "flax_model.msgpack", "bert_model.ckpt.index", "model.ckpt.index")


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
    file = read_tensor_file(path)
    found = one_model(file.tensors, IMAGE_ANCHORS, str(path))
    openai = "conv1.weight" in found.inside
    tensors, beside = _split(found, OPENAI_WORDS if openai else IMAGE_WORDS)
    notes = [*file.notes, *_named(found, beside, "CLIP's text tower and projections, or other heads")]
    if openai:
        tensors = _openai_renamed(tensors)
    position = "embeddings.position_embedding.weight"
    patches = config.image.patches
    if resize_positions and position in tensors and len(tensors[position]) != patches + 1:
        notes.append(interpolated(len(tensors[position]) - 1, patches))
        tensors[position] = resized_positions(tensors[position], patches, str(path))
    params, unused = _explained(tensors, clip_vision(config.image.layers), CLIP_LEFTOVER, config, str(path))
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
    file = read_tensor_file(path)
    found = one_model(file.tensors, TEXT_ANCHORS, str(path))
    tower, beside = _split(found, TEXT_WORDS)
    above = found.prefix[: found.prefix.rstrip(".").rfind(".") + 1]  # heads lie beside bert., in what holds both
    head = {key: key.removeprefix(above) for key in beside if key.startswith(f"{above}cls.")}
    tensors = {_modern(key): tensor for key, tensor in tower.items()}
    tensors |= {_modern(short): beside.pop(key) for key, short in head.items()}
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
    notes = (*file.notes, *_named(found, beside, "no part of the text tower"), *notes)
    if masked_lm and not has_head:
        notes = (*notes, "masked-language-model head: not in the checkpoint, starts random")
    return Weights(params, notes)


def _split(found: OneModel, words: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors of the tower, by names without prefix, and those beside it; without a prefix by the first word."""
    if found.prefix:
        return dict(found.inside), dict(found.outside)
    tower = {name: tensor for name, tensor in found.inside.items() if name.partition(".")[0] in words}
    return tower, found.outside | {name: tensor for name, tensor in found.inside.items() if name not in tower}


def _named(found: OneModel, beside: Tensors, reason: str) -> list[str]:
    """Notes on the prefix of a tower and on what was left out beside it."""
    notes = [f"names without {found.prefix}"] if found.prefix else []
    return notes + ([_left_out(list(beside), reason)] if beside else [])


def _left_out(names: list[str], reason: str) -> str:
    return f"left out {len(names)} tensor(s), {listed(names)}: {reason}"


def located(name: str) -> Path:
    """The file of weights behind a path or hub name.

    Raises:
        UserError: there is none.
    """
    path = user_path(name)
    if path.is_dir():
        for file in (*WEIGHT_FILES, *INDEX_FILES):
            if (path / file).is_file():
                return path / file
        others = [file for file in OTHER_FRAMEWORKS if (path / file).is_file()]
        raise UserError(
            f"{path} holds none of {', '.join((*WEIGHT_FILES, *INDEX_FILES))}; expected a transformers folder, or name "
            + (
                f"a file. {', '.join(others)} is of another framework: convert it to PyTorch first"
                if others
                else "a file"
            )
        )
    if path.is_file():
        return path
    if path.suffix or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"initial weights {name} do not exist; expected a file, a folder or a hub name")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    errors = []
    for file in (*WEIGHT_FILES, *INDEX_FILES):
        try:
            return _with_shards(name, Path(huggingface_hub.hf_hub_download(name, file)))
        except Exception as error:
            errors.append(f"{file}: {first_line(error)}")
    raise UserError(
        f"initial weights {name!r} are neither a file or folder here nor weights that the Hugging Face hub gave "
        f"({'; '.join(errors)}). Correct the name, or download the folder and name its path"
    )


def _with_shards(name: str, path: Path) -> Path:
    """Downloads what an index names; the hub's cache puts the files of one revision beside each other."""
    if path.name.endswith(INDEX):
        for shard in set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()):
            huggingface_hub.hf_hub_download(name, shard)
    return path


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
            notes.append(_left_out(names, reason))
    return params, tuple(notes)


def _with_tokens_of(tensors: Tensors, config: ModelConfig) -> ModelConfig:
    """The sizes with as many tokens as there are word embeddings, if these are fewer."""
    rows, tokens = tensors.get("embeddings.word_embeddings.weight", ()), config.text.vocabulary_size
    text = dataclasses.replace(config.text, vocabulary_size=min(len(rows) or tokens, tokens))
    return dataclasses.replace(config, text=text)


def _modern(name: str) -> str:
    """The current name of a BERT tensor in transformers: norms with PyTorch's names."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _openai_renamed(visual: Tensors) -> dict[str, np.ndarray]:
    """OpenAI's and Chinese-CLIP's visual tower under transformers' names."""
    renamed = {}
    for name, tensor in visual.items():
        if name == "proj":
            continue  # CLIP's own projection; R2D2 has one of its own width
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            prefix = f"encoder.layers.{match[1]}.self_attn"
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
            return re.sub(pattern, modern, name)
    return f"visual.{name}"  # `check_tensors` refuses it under its name in the file
