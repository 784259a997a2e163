"""PRD2 ViT-L on the 250 M pairs of Zero: pre-ranking and distillation, no cross encoders.

Batch size, learning rate and epochs are our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config() -> ConfigDict:
    """For 128 devices or more; without cross encoders 64 pairs per device fit easily."""
    config = ConfigDict()
    config.model = presets.article_model(presets.vit_large())
    config.data = presets.zero_data("250m")
    config.initial = presets.clip_and_roberta(presets.CLIP_LARGE)
    config.loss = presets.article_losses()
    config.optimizer = ConfigDict(dict(learning_rate=1e-4, warmup_steps=2000, weight_decay=0.02))
    config.train = ConfigDict(
        dict(batch_size=8192, epochs=5.0, log_every=50, evaluate_every=5000, checkpoint_every=1000, keep_last=3)
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=8))
    config.evaluation = ConfigDict(dict(batch_size=1024))
    return presets.with_variant(completed(config), "prd2")
