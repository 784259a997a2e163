"""Small models with random weights, for tests of conversion and inference."""

import dataclasses

import jax
import numpy as np

from r2d2_jax.config.model import CrossEncoderConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from r2d2_jax.convert.naming import our_shapes
from r2d2_jax.models.r2d2 import R2D2, init_params
from r2d2_jax.models.store import Model
from r2d2_jax.trees import nested
from r2d2_jax.vocabulary import Vocabulary

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL_TOKENS, *"红蓝圆方大小")


def random_model(layers: int = 3, cross_layers: int = 2, seed: int = 0, tokens: tuple[str, ...] | None = None) -> Model:
    """A model of 64 channels and one head, as the published rule has it."""
    config = ModelConfig(
        image=ImageTowerConfig(image_size=24, patch_size=8, width=64, layers=layers, heads=1, mlp_width=32),
        text=TextTowerConfig(
            vocabulary_size=11, text_length=7, width=64, layers=layers, heads=1, mlp_width=24, max_positions=7
        ),
        cross=CrossEncoderConfig(layers=cross_layers, width=64, heads=1, mlp_width=24 if cross_layers else 256),
        embed_size=16,
        dtype="float32",
    )
    rng = np.random.default_rng(seed)
    shapes = our_shapes(config)
    leaves = {path: (0.1 * rng.normal(size=shape)).astype(np.float32) for path, shape in shapes.items()}
    return Model(config, nested(leaves), vocabulary=Vocabulary(tokens) if tokens else None)


def with_words_head(model: Model) -> Model:
    """The model with a random head of masked words."""
    head = init_params(R2D2(model.config), jax.random.key(0))["masked_lm_head"]
    return dataclasses.replace(model, params={**model.params, "masked_lm_head": head})
