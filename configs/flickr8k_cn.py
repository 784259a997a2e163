"""A small model from scratch on 6,000 photographs with five Chinese captions each, for two CPU cores.

    python launch/prepare_data.py --images=flickr8k_cn/images --annotations=flickr8k_cn/captions.jsonl \
        --vocabulary=vocab.txt --output=data/flickr8k_cn

    --config=flickr8k_cn          the whole method
    --config=flickr8k_cn:prd2     pre-ranking only, for the same time; the other variants of vitb_2m.py exist, too

The published vocabulary, at sizes that train within the hour. All numbers are our decision; docs/method.md has what was
measured of them.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config(variant: str = "") -> ConfigDict:
    """Visits every photograph 90 times; PRD2, whose steps are shorter, 210 times."""
    width, heads, mlp_width = 128, 2, 256
    config = ConfigDict()
    config.model = ConfigDict(
        dict(
            image=dict(image_size=80, patch_size=16, width=width, layers=3, heads=heads, mlp_width=mlp_width),
            text=dict(
                vocabulary_size=21128,
                text_length=24,  # one in fifty of the human captions is longer, and one in four of the translated ones
                max_positions=32,
                width=width,
                layers=2,
                heads=heads,
                mlp_width=mlp_width,
            ),
            cross=dict(layers=2, width=width, heads=heads, mlp_width=mlp_width),
            embed_size=128,
            freeze_image_tower=False,  # there are no initial weights to keep
            temperature_range=(0.05, 0.5),  # a learned temperature falls fast at this learning rate
            dtype="float32",
            unroll=True,
        )
    )
    config.data = ConfigDict(dict(directory="data/flickr8k_cn", crop_scale=(0.4, 1.0)))
    config.loss = presets.article_losses()
    config.loss.update(presets.from_scratch(batch_size=128))
    config.optimizer = ConfigDict(dict(learning_rate=5e-4, warmup_steps=100, weight_decay=0.1))
    config.train = ConfigDict(
        dict(
            batch_size=128,
            epochs=210.0 if variant == "prd2" else 90.0,
            log_every=50,
            evaluate_every=500,
            checkpoint_every=250,
            keep_last=2,
        )
    )
    config.evaluation = ConfigDict(dict(rerank_candidates=16, rerank_during_training=False, batch_size=128))
    return presets.with_variant(completed(config), variant)
