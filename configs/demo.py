"""The demonstration: every part of the method, small enough for two CPU cores.

Scenes of two objects with Chinese captions, made by `python launch/prepare_data.py --demo --output=data/demo`. To tell
大红圆在小蓝方块左边 from 大蓝圆在小红方块左边 a model must bind colours to shapes; a bag of words cannot.
All numbers are our decision; those that differ from the article's are so because model, data and time are small.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config() -> ConfigDict:
    """Trains in about seven minutes on two cores."""
    width, heads, mlp_width = 64, 2, 128
    config = ConfigDict()
    config.model = ConfigDict(
        dict(
            # One layer leaves more to the cross encoders, which read patches where the embedding is a single vector.
            image=dict(image_size=48, patch_size=12, width=width, layers=1, heads=heads, mlp_width=mlp_width),
            text=dict(
                vocabulary_size=40,  # the built-in captions need fewer
                text_length=15,  # the longest caption has 13 characters, [CLS] and [SEP]
                max_positions=15,
                width=width,
                layers=2,
                heads=heads,
                mlp_width=mlp_width,
            ),
            cross=dict(layers=2, width=width, heads=heads, mlp_width=mlp_width),
            embed_size=64,
            freeze_image_tower=False,  # there are no initial weights to keep
            temperature_range=(0.05, 0.5),  # a learned temperature falls fast at this learning rate
            dtype="float32",
            unroll=True,  # faster on the CPU
        )
    )
    config.data = ConfigDict(
        dict(
            directory="data/demo",
            foil_split="swapped",
            crop_scale=(1.0, 1.0),  # objects reach close to the border
            flip=False,  # left and right matter
        )
    )
    config.loss = presets.article_losses()
    # Wider temperatures of feature-guided distillation: from scratch, features are large, and the article-sized ones
    # would let this term outweigh all others.
    config.loss.update(queue_length=512, fgd_student_temperature=0.5, fgd_teacher_temperature=0.2)
    config.optimizer = ConfigDict(dict(learning_rate=1e-3, warmup_steps=100, weight_decay=0.02))
    config.train = ConfigDict(
        dict(batch_size=64, epochs=36.0, log_every=50, evaluate_every=1000, checkpoint_every=500, keep_last=2)
    )
    config.evaluation = ConfigDict(dict(rerank_candidates=16, batch_size=64))
    return completed(config)
