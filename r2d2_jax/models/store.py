"""A model on disk without a train state: sizes, parameters, vocabulary, and tensors that no output reads."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from r2d2_jax.arrays import Params
from r2d2_jax.atomic import written_whole
from r2d2_jax.config.model import DTYPES, ModelConfig
from r2d2_jax.config.reading import model_config
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted, first_line
from r2d2_jax.lineage import Lineage, checked_lineage
from r2d2_jax.models.r2d2 import R2D2, abstract_params
from r2d2_jax.paths import refuse_pointer
from r2d2_jax.trees import flat, nested, shape_differences
from r2d2_jax.vocabulary import VOCABULARY, Vocabulary, vocabulary_in, write_vocabulary

CONFIG, PARAMS, UNUSED = "model.json", "params.safetensors", "unused.safetensors"


@dataclass(frozen=True)
class Model:
    """A model without a train state.

    Attributes:
        config: the sizes; computes in float32 as it is read.
        params: nested dicts of float32 arrays.
        unused: the tensors of a published checkpoint that no output reads, by their published names.
        vocabulary: the WordPiece tokens by id; None if unknown.
        maps_punctuation: whether Chinese quotation marks, ellipsis and dash were mapped to ASCII in training. Our
            pre-training does so unless `data.map_punctuation` is off; the published code never does.
        notes: what was unwrapped and left out when the model was read, a line each; not part of what is saved.
        lineage: what led to the weights, see `lineage.py`; empty if nothing is known.
        evaluation: what the run that made the weights measured of them, in per cent by the names of its log, such as
            "validation/dual/i2t_r1"; empty if it did not.
    """

    config: ModelConfig
    params: Params
    unused: dict[str, np.ndarray] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    maps_punctuation: bool = True
    notes: tuple[str, ...] = ()
    lineage: Lineage = ()
    evaluation: dict[str, float] = field(default_factory=dict)

    @property
    def module(self) -> R2D2:
        """The Linen module, with the parts that have parameters."""
        matching, masked_lm = "text_image_match_head" in self.params, "masked_lm_head" in self.params
        return R2D2(self.config, matching=matching, masked_lm=masked_lm)

    def computing_in(self, dtype: str) -> "Model":
        """The same model, whose matrix products are computed in another dtype.

        Raises:
            UserError: it is none of DTYPES.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        return dataclasses.replace(self, config=dataclasses.replace(self.config, dtype=dtype))

    def summary(self) -> str:
        """Kind, number of parameters and sizes, in one line."""
        kind = "R2D2" if self.module.matching else "PRD2"
        vocabulary = "" if self.vocabulary else ", no vocabulary"
        image, text = self.config.image, self.config.text
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"{kind}, {count:,} parameters; image {image.image_size} / {image.patch_size} pixels, {image.layers} "
            f"layers of {image.width}; text {text.layers} layers of {text.width}, {text.vocabulary_size} tokens; "
            f"{self.config.cross.layers} cross layers{vocabulary}"
        )


def is_model(folder: Path) -> bool:
    """Whether the folder holds what `save_model` writes."""
    return (folder / CONFIG).is_file() and (folder / PARAMS).is_file()


def save_model(model: Model, folder: Path) -> None:
    """Writes a model, whole or not at all.

    `model.json` holds the sizes and the lineage, `params.safetensors` the parameters by their paths, such as
    "text_encoder/layers/mlp/up/kernel", `unused.safetensors` the tensors that no output reads, `vocab.txt` the
    vocabulary. A run's checkpoints are Orbax's; a model alone fits into one file that any program can read (our
    decision).

    Raises:
        UserError: the folder cannot be written.
    """
    with written_whole(folder) as unfinished:
        unfinished.mkdir()
        save_file({path: np.asarray(leaf, order="C") for path, leaf in flat(model.params)}, unfinished / PARAMS)
        described = {
            "model": model.config.described(),
            "maps_punctuation": model.maps_punctuation,
            "lineage": model.lineage,
            "evaluation": model.evaluation,
        }
        (unfinished / CONFIG).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if model.unused:
            save_file(model.unused, unfinished / UNUSED)
        if model.vocabulary:
            write_vocabulary(model.vocabulary, unfinished / VOCABULARY)


def load_model(folder: Path) -> Model:
    """Reads what `save_model` wrote.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    if not is_model(folder):
        raise UserError(f"{folder} holds no model; expected {CONFIG} and {PARAMS}, as launch/convert.py writes them")
    try:
        refuse_pointer(folder / CONFIG)
        refuse_pointer(folder / PARAMS)
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        params = nested(_floats(_tensors(folder / PARAMS), folder / PARAMS))
        unused = load_file(folder / UNUSED) if (folder / UNUSED).exists() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the model in {folder} is damaged: {first_line(error)}; convert it again") from error
    if not isinstance(described, dict):
        raise UserError(f"{folder / CONFIG} holds no JSON object with the sizes of the model; convert it again")
    config = model_config(described.get("model"), f"the model in {folder}")
    vocabulary = vocabulary_in(folder)
    lineage = checked_lineage(described.get("lineage", []), str(folder / CONFIG))
    maps = described.get("maps_punctuation") is True
    evaluation = checked_evaluation(described.get("evaluation", {}), str(folder / CONFIG))
    model = Model(config, params, unused, vocabulary, maps, lineage=lineage, evaluation=evaluation)
    if differences := shape_differences(params, abstract_params(model.module)):
        raise UserError(f"{folder / PARAMS} does not fit {CONFIG}; convert it again:\n{bulleted(differences)}")
    return model


def checked_evaluation(figures: Any, source: str) -> dict[str, float]:
    """The figures of a model as JSON gives them.

    Raises:
        UserError: it is no object of numbers.
    """
    if not isinstance(figures, dict) or not all(isinstance(value, (int, float)) for value in figures.values()):
        raise UserError(f"the evaluation in {source} is no object of numbers; copy the file back, or remove it there")
    return figures


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file. It is opened for each, since while it is open all its pages read count as this process's.

    `load_file` would need twice the memory of the parameters, and an evaluation within a memory limit has it once.
    """
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
    tensors = {}
    for name in names:
        with safe_open(path, framework="numpy") as file:
            tensors[name] = file.get_tensor(name)
    return tensors


def _floats(leaves: dict[str, np.ndarray], source: Path) -> dict[str, np.ndarray]:
    """The leaves in float32, whatever floats they were saved in."""
    odd = [f"{path}: {leaf.dtype}" for path, leaf in leaves.items() if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    if odd:
        raise UserError(f"{source} holds weights that are no floats; convert it again:\n{bulleted(odd[:FIRST_NAMES])}")
    return {path: leaf.astype(np.float32, copy=False) for path, leaf in leaves.items()}
