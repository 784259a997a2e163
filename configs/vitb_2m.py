"""R2D2 ViT-B on the 2.3 M pairs of Zero, and the article's five ablations of it.

    --config=vitb_2m                  the whole method
    --config=vitb_2m:without_et       without enhanced training: clean text, an extra masked pass for MLM
    --config=vitb_2m:without_tgd      without target-guided distillation: hard targets, no queue
    --config=vitb_2m:without_fgd      without feature-guided distillation
    --config=vitb_2m:without_twd      without both distillations
    --config=vitb_2m:without_fgr      without fine-grained ranking

That the ablations use ViT-B, and batch size, learning rate and epochs, are our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed
from r2d2_jax.errors import UserError

ABLATIONS = {
    "": dict(),
    "without_et": dict(enhanced_training=False),
    "without_tgd": dict(contrastive="gcpr"),
    "without_fgd": dict(fgd=False),
    "without_twd": dict(contrastive="gcpr", fgd=False),
    "without_fgr": dict(fgr=False),
}


def get_config(ablation: str = "") -> ConfigDict:
    """For 8 devices or more: 128 pairs per device."""
    if ablation not in ABLATIONS:
        raise UserError(f"vitb_2m has no ablation {ablation!r}; it has {', '.join(filter(None, ABLATIONS))}")
    config = ConfigDict()
    config.model = presets.article_model(presets.vit_base())
    config.data = presets.zero_data("2m")
    config.initial = presets.clip_and_roberta(presets.CLIP_BASE)
    config.loss = presets.article_losses()
    config.loss.update(ABLATIONS[ablation])
    config.optimizer = ConfigDict(dict(learning_rate=1e-4, warmup_steps=1000, weight_decay=0.02))
    config.train = ConfigDict(
        dict(batch_size=1024, epochs=15.0, log_every=50, evaluate_every=2000, checkpoint_every=1000, keep_last=3)
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))
    # Without FGR no match head is trained, so there is nothing to re-rank with.
    rerank = 16 if config.loss.fgr else 0
    config.evaluation = ConfigDict(dict(rerank_candidates=rerank, rerank_during_training=False, batch_size=512))
    return completed(config)
