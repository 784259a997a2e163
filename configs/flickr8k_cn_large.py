"""The photographs of flickr8k_cn.py with a larger model, meant for ten minutes of one data-centre GPU.

    --config=flickr8k_cn_large          the whole method
    --config=flickr8k_cn_large:prd2     pre-ranking only, for the same time; the other variants of vitb_2m.py exist, too

All numbers are our decision. No GPU was at hand: steps were tried on a CPU, and nothing was trained to its end.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config(variant: str = "") -> ConfigDict:
    """Visits every photograph 100 times; PRD2, whose steps are shorter, 220 times."""
    width, heads, mlp_width, dropout = 384, 6, 1536, presets.DROPOUT
    config = ConfigDict()
    config.model = ConfigDict(
        dict(
            image=dict(image_size=112, patch_size=14, width=width, layers=8, heads=heads, mlp_width=mlp_width),
            text=dict(
                vocabulary_size=21128,
                text_length=32,
                max_positions=32,
                width=width,
                layers=4,
                heads=heads,
                mlp_width=mlp_width,
                dropout=dropout,
            ),
            cross=dict(layers=3, width=width, heads=heads, mlp_width=mlp_width, dropout=dropout),
            embed_size=256,
            freeze_image_tower=False,  # there are no initial weights to keep
            temperature_range=(0.05, 0.5),
            dtype="bfloat16",
        )
    )
    config.data = ConfigDict(dict(directory="data/flickr8k_cn", crop_scale=(0.4, 1.0), workers=8))
    config.loss = presets.article_losses()
    config.loss.update(presets.from_scratch(batch_size=256))
    config.optimizer = ConfigDict(dict(learning_rate=5e-4, warmup_steps=200, weight_decay=0.1))
    config.train = ConfigDict(
        dict(
            batch_size=256,
            epochs=220.0 if variant == "prd2" else 100.0,
            log_every=50,
            evaluate_every=500,
            checkpoint_every=500,
            keep_last=2,
        )
    )
    config.evaluation = ConfigDict(dict(rerank_candidates=16, rerank_during_training=False, batch_size=256))
    return presets.with_variant(completed(config), variant)
