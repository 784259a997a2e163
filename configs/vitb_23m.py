"""R2D2 ViT-B on the 23 M pairs of Zero.

Batch size, learning rate and epochs are our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config() -> ConfigDict:
    """For 32 devices or more: 64 pairs per device."""
    config = ConfigDict()
    config.model = presets.article_model(presets.vit_base())
    config.data = presets.zero_data("23m")
    config.initial = presets.clip_and_roberta(presets.CLIP_BASE)
    config.loss = presets.article_losses()
    config.optimizer = ConfigDict(dict(learning_rate=1e-4, warmup_steps=2000, weight_decay=0.02))
    config.train = ConfigDict(
        dict(batch_size=2048, epochs=10.0, log_every=50, evaluate_every=5000, checkpoint_every=1000, keep_last=3)
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))
    config.evaluation = ConfigDict(dict(rerank_candidates=16, rerank_during_training=False, batch_size=1024))
    return completed(config)
