"""R2D2 ViT-L on the 2.3 M pairs of Zero, whole or as one of the variants that the article has of this model and data.

    --config=vitl_2m                  the whole method
    --config=vitl_2m:prd2             pre-ranking only: no cross encoders
    --config=vitl_2m:without_et       without enhanced training: clean text, an extra masked pass for MLM
    --config=vitl_2m:without_twd      without both distillations
    --config=vitl_2m:without_fgd      without feature-guided distillation
    --config=vitl_2m:without_tgd      without target-guided distillation: hard targets, no queue

Batch size, learning rate and epochs are our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config(variant: str = "") -> ConfigDict:
    """For 32 devices or more: 32 pairs per device."""
    config = ConfigDict()
    config.model = presets.article_model(presets.vit_large())
    config.data = presets.zero_data("2m")
    config.initial = presets.clip_and_roberta(presets.CLIP_LARGE)
    config.loss = presets.article_losses()
    config.optimizer = ConfigDict(dict(learning_rate=1e-4, warmup_steps=1000, weight_decay=0.02))
    config.train = ConfigDict(
        dict(batch_size=1024, epochs=15.0, log_every=50, evaluate_every=2000, checkpoint_every=1000, keep_last=3)
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=8))
    config.evaluation = ConfigDict(dict(rerank_candidates=16, rerank_during_training=False, batch_size=512))
    return presets.with_variant(completed(config), variant)
