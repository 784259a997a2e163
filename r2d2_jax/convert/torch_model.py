"""The PyTorch model of `modeling_r2d2.py` with the weights of a model of ours or of a published file. Needs PyTorch."""

import torch

from r2d2_jax.config.model import ModelConfig
from r2d2_jax.convert.modeling_r2d2 import R2D2Config, R2D2Model
from r2d2_jax.convert.naming import Tensors
from r2d2_jax.convert.torch_r2d2 import published_places
from r2d2_jax.convert.transformers_folder import SIZES


def torch_model(config: ModelConfig, tensors: Tensors) -> R2D2Model:
    """Builds the model, in float32 and without dropout.

    Args:
        config: the sizes.
        tensors: published name -> tensor; what no output reads may be among them.
    """
    sizes = config.described()
    model = R2D2Model(R2D2Config(**{name: sizes[name] for name in SIZES}))
    state = {name: torch.tensor(tensors[name]) for name in published_places(config)}
    model.load_state_dict(state, strict=True)
    return model.eval()
