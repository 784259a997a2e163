"""A model on disk without a train state: sizes, parameters, vocabulary, and what a published checkpoint held beside."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from r2d2_jax.atomic import written_whole
from r2d2_jax.config import ModelConfig, model_config
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.models.r2d2 import R2D2

CONFIG, PARAMS, UNUSED, VOCABULARY = "model.json", "params", "unused.safetensors", "vocab.txt"


@dataclass(frozen=True)
class Model:
    """A model without a train state.

    Attributes:
        config: the sizes; computes in float32.
        params: nested dicts of float32 arrays.
        unused: the tensors of a published checkpoint that no output reads, by their published names.
        vocabulary: the WordPiece tokens by id, or None where they are not known.
    """

    config: ModelConfig
    params: dict[str, Any]
    unused: dict[str, np.ndarray] = field(default_factory=dict)
    vocabulary: tuple[str, ...] | None = None

    @property
    def module(self) -> R2D2:
        """The Linen module with the parts that there are parameters for."""
        matching, masked_lm = "text_image_match_head" in self.params, "masked_lm_head" in self.params
        return R2D2(self.config, matching=matching, masked_lm=masked_lm)

    def summary(self) -> str:
        """What it is, in a line."""
        kind = "R2D2" if self.module.matching else "PRD2"
        image, text = self.config.image, self.config.text
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"{kind}, {count:,} parameters; image {image.image_size} / {image.patch_size} pixels, {image.layers} "
            f"layers of {image.width}; text {text.layers} layers of {text.width}, {text.vocabulary_size} tokens; "
            f"{self.config.cross.layers} cross layers"
        )


def is_model(folder: Path) -> bool:
    """Whether the folder holds what `save_model` writes."""
    return (folder / CONFIG).is_file() and (folder / PARAMS).is_dir()


def save_model(model: Model, folder: Path) -> None:
    """Writes a model, whole or not at all: `model.json`, Orbax's `params/`, `unused.safetensors`, `vocab.txt`.

    Raises:
        UserError: the folder cannot be written.
    """
    with written_whole(folder) as unfinished:
        unfinished.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(unfinished.absolute() / PARAMS, model.params)
        (unfinished / CONFIG).write_text(json.dumps(dataclasses.asdict(model.config), indent=2) + "\n")
        if model.unused:
            save_file(model.unused, unfinished / UNUSED)
        if model.vocabulary:
            text = "".join(f"{token}\n" for token in model.vocabulary)
            (unfinished / VOCABULARY).write_text(text, encoding="utf-8", newline="\n")


def load_model(folder: Path) -> Model:
    """Reads what `save_model` wrote.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    if not is_model(folder):
        raise UserError(f"{folder} holds no model; expected {CONFIG} and {PARAMS}/, as launch/convert.py writes them")
    try:
        config = model_config(json.loads((folder / CONFIG).read_text()))
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(folder.absolute() / PARAMS)
        unused = load_file(folder / UNUSED) if (folder / UNUSED).exists() else {}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the model in {folder} is damaged: {first_line(error)}; convert it again") from error
    return Model(config, jax.tree.map(np.asarray, params), unused, read_vocabulary(folder / VOCABULARY))


def read_vocabulary(path: Path) -> tuple[str, ...] | None:
    """The tokens of a WordPiece vocabulary file, one a line; None if there is no file."""
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1]) if path.exists() else None
