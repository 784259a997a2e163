"""The demonstration: every part of the method, small enough for two CPU cores.

Scenes of two objects with Chinese captions, made by `python launch/prepare_data.py --demo --output=data/demo`. To tell
大红圆在小蓝方块左边 from 大蓝圆在小红方块左边 a model must bind colours to shapes; a bag of words cannot.
All numbers are our decision; those that differ from the article's are so because model, data and time are small.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config() -> ConfigDict:
    """Trains in about ten minutes on two cores."""
    config = ConfigDict()
    config.model = presets.demo_model()
    config.data = presets.demo_data()
    config.loss = presets.article_losses()
    config.loss.update(queue_length=512)
    config.optimizer = ConfigDict(dict(learning_rate=1e-3, warmup_steps=100, weight_decay=0.02))
    config.train = ConfigDict(
        dict(batch_size=64, epochs=54.0, log_every=50, evaluate_every=1000, checkpoint_every=500, keep_last=2)
    )
    config.evaluation = ConfigDict(dict(rerank_candidates=16, batch_size=64))
    return completed(config)
