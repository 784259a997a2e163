"""A small model from scratch on 6,000 photographs with five Chinese captions each, for two CPU cores.

    python launch/prepare_data.py --images=flickr8k_cn/images --annotations=flickr8k_cn/captions.jsonl \
        --vocabulary=vocab.txt --output=data/flickr8k_cn

The whole method with the published vocabulary, at sizes that train in less than 45 minutes. All numbers are our
decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets


def get_config() -> ConfigDict:
    """Visits every photograph 40 times."""
    width, heads, mlp_width = 128, 2, 256
    config = ConfigDict()
    config.model = ConfigDict(
        dict(
            image=dict(image_size=80, patch_size=16, width=width, layers=3, heads=heads, mlp_width=mlp_width),
            text=dict(
                vocabulary_size=21128,
                text_length=16,  # half of the captions have nine characters or fewer
                max_positions=32,
                width=width,
                layers=2,
                heads=heads,
                mlp_width=mlp_width,
            ),
            cross=dict(layers=2, width=width, heads=heads, mlp_width=mlp_width),
            embed_size=128,
            freeze_image_tower=False,  # there are no initial weights to keep
            temperature_range=(0.03, 0.5),  # a learned temperature falls fast at this learning rate
            dtype="float32",
            unroll=True,
        )
    )
    config.data = ConfigDict(dict(directory="data/flickr8k_cn", crop_scale=(0.4, 1.0)))
    config.loss = presets.article_losses()
    config.loss.update(queue_length=2048, fgd_student_temperature=0.5, fgd_teacher_temperature=0.2)
    config.optimizer = ConfigDict(dict(learning_rate=1e-3, warmup_steps=200, weight_decay=0.1))
    config.train = ConfigDict(
        dict(batch_size=128, epochs=40.0, log_every=50, evaluate_every=200, checkpoint_every=200, keep_last=2)
    )
    config.evaluation = ConfigDict(dict(rerank_candidates=16, rerank_during_training=False, batch_size=128))
    return config
