"""R2D2 ViT-B on the 2.3 M pairs of Zero, whole or as one of the article's variants.

    --config=vitb_2m                  the whole method
    --config=vitb_2m:prd2             pre-ranking only: no cross encoders
    --config=vitb_2m:without_et       without enhanced training: clean text, an extra masked pass for MLM
    --config=vitb_2m:without_twd      without both distillations
    --config=vitb_2m:without_fgd      without feature-guided distillation
    --config=vitb_2m:without_tgd      without target-guided distillation: hard targets, no queue

The article has these of ViT-L (vitl_2m.py); batch size, learning rate and epochs are our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config(variant: str = "") -> ConfigDict:
    """For 8 devices or more: 128 pairs per device."""
    config = ConfigDict()
    config.model = presets.article_model(presets.vit_base())
    config.data = presets.zero_data("2m")
    config.initial = presets.clip_and_roberta(presets.CLIP_BASE)
    config.loss = presets.article_losses()
    config.optimizer = ConfigDict(dict(learning_rate=1e-4, warmup_steps=1000, weight_decay=0.02))
    config.train = ConfigDict(
        dict(batch_size=1024, epochs=15.0, log_every=50, evaluate_every=2000, checkpoint_every=1000, keep_last=3)
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))
    config.evaluation = ConfigDict(dict(rerank_candidates=16, rerank_during_training=False, batch_size=512))
    return presets.with_variant(completed(config), variant)
