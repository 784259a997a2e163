"""Our sizes as configurations of transformers' own PyTorch models."""

from typing import Any

import transformers

from r2d2_jax.config.model import ImageTowerConfig, TextTowerConfig


def clip_config(size: ImageTowerConfig) -> Any:
    """Of a `CLIPVisionModel`."""
    return transformers.CLIPVisionConfig(
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
    )


def bert_config(size: TextTowerConfig) -> Any:
    """Of a `BertModel` or `BertForMaskedLM`."""
    return transformers.BertConfig(
        vocab_size=size.vocabulary_size,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.mlp_width,
        max_position_embeddings=size.max_positions,
    )
